"""All objects of a session, whoever made them: what is known of each, and what can be done with them."""
