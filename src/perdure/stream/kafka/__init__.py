"""The stream in Apache Kafka."""

from perdure.stream.kafka.membership import Membership
from perdure.stream.kafka.stream import KafkaStream

__all__ = ["KafkaStream", "Membership"]
