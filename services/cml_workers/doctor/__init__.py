"""What a deployment has to have at AWS before anything is launched, and what of it is missing."""
