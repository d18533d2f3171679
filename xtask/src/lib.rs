//! Private PostgreSQL and Kafka servers for the demo and the tests.
