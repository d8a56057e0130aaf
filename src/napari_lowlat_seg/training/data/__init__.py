"""What networks are trained on: pictures and volumes, and the views and sequences drawn from them."""
