"""A fast broker in Redis or Valkey, for workers on many machines. See `taskflow.broker.redis.broker`."""

from taskflow.broker.redis.broker import RedisBroker
from taskflow.broker.redis.server import RedisTarget

__all__ = ["RedisBroker", "RedisTarget"]
