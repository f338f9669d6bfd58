"""The channel layer after its connection died, as by a restart of the broker."""

from channels.layers import get_channel_layer


async def test_a_socket_opens_although_the_layers_connection_is_dead(broker):
    layer = get_channel_layer()
    await layer.new_channel()
    broker.client_kill_filter(_type="pubsub")
    channel = await layer.new_channel()
    await layer.group_add("job-1", channel)
    await layer.group_send("job-1", {"type": "live.message", "text": "{}"})
    assert (await layer.receive(channel))["text"] == "{}"
    await layer.flush()
