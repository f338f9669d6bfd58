"""The channel layer between `live.publish` and the sockets."""

from __future__ import annotations

from typing import cast

import redis
from channels_redis.pubsub import RedisPubSubChannelLayer
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

_patiently = retry(
    retry=retry_if_exception_type(redis.ConnectionError), stop=stop_after_attempt(5), wait=wait_fixed(0.2), reraise=True
)


class LiveLayer(RedisPubSubChannelLayer):  # type: ignore[misc]
    """The pub/sub layer, whose sockets open although its connection has died, as by a restart of the broker.

    The layer notices a dead connection when it next subscribes, and then connects anew; without another try the socket
    that asked is refused with a 500.
    """

    @_patiently
    async def new_channel(self, prefix: str = "specific.") -> str:
        """Return the name of a new channel."""
        return cast(str, await self._get_layer().new_channel(prefix))

    @_patiently
    async def group_add(self, group: str, channel: str) -> None:
        """Let `channel` hear what is sent to `group`."""
        await self._get_layer().group_add(group, channel)
