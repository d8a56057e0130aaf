"""What the user does on the canvas beside drawing prompts: candidates, the keyboard's cursor, hints."""
