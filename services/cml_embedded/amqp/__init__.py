"""A small AMQP 0-9-1 broker that behaves like RabbitMQ: for demo and development only."""
