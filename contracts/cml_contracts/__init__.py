"""What other services install to work with cml-workers: contracts and a small client."""
