"""What can go wrong at EC2, as exceptions: AWS's error codes grouped by what the system does about them."""
