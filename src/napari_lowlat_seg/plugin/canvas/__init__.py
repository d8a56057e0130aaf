"""What the user does on the canvas beside drawing prompts: levels of a mask, the keyboard's cursor, hints."""
