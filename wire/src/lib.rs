//! What travels over MQTT, and nothing else.
