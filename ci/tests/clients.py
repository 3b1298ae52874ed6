#!/usr/bin/python3
"""Real clients and real servers of WebSockets and gRPC, with the front between them.

    clients.py SOCKET CERTIFICATE WEBSOCKETS GRPC

SOCKET is where the front looks for the service, CERTIFICATE what it shows, in PEM, and the other
two are the local ports at which it serves HTTP and h2c. Started by a test of `cofferd`
(`protocols.rs`). Prints a line for each thing that worked; the first that does not ends it.
"""

import asyncio
import contextlib
import os
import ssl
import sys

import grpc
import websockets

LARGE = 1 << 20


def worked(what):
    print(what, flush=True)


async def converse(certificate, port):
    trust = ssl.create_default_context(cafile=certificate)
    uri = f"wss://127.0.0.1:{port}/chat?room=1"
    options = {"ssl": trust, "subprotocols": ["chat"], "max_size": 2 * LARGE}
    async with websockets.connect(uri, **options) as client:
        assert client.subprotocol == "chat"
        assert any("permessage-deflate" in str(one.name) for one in client.extensions)
        for said in ("hello", "ünïcode", "x" * LARGE, b"\x00\xff" * 1000, ""):
            await client.send(said)
            assert await client.recv() == said
        worked("texts and bytes in both directions")
        await client.send(iter(["in ", "three ", "pieces"]))
        assert await client.recv() == "in three pieces"
        await (await client.ping())
        worked("fragments, pings")
        # The service goes on by itself.
        await client.send("count")
        assert [await client.recv() for _ in range(3)] == ["0", "1", "2"]
        await client.send("close")
        try:
            await client.recv()
            raise AssertionError("the service has closed")
        except websockets.ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "enough")
        worked("the service's end, with its reason")
    several = await asyncio.gather(*(websockets.connect(uri, ssl=trust) for _ in range(8)))
    for number, client in enumerate(several):
        await client.send(str(number))
    assert [await client.recv() for client in several] == [str(number) for number in range(8)]
    await asyncio.gather(*(client.close() for client in several))
    worked("several at a time")


async def chat(server):
    with contextlib.suppress(websockets.ConnectionClosed):
        async for said in server:
            if said == "count":
                for number in range(3):
                    await server.send(str(number))
            elif said == "close":
                await server.close(4001, "enough")
            else:
                await server.send(said)


async def talk(socket, certificate, port):
    options = {"subprotocols": ["chat"], "max_size": 2 * LARGE}
    async with websockets.unix_serve(chat, socket, **options):
        await converse(certificate, port)


def pairs(metadata):
    # Some of them are mappings, which dict() would read by their keys.
    return dict(tuple(metadata))


class Service(grpc.GenericRpcHandler):
    """Methods over bytes, so that nothing has to be generated."""

    def service(self, details):
        methods = {
            "/room.Echo/One": grpc.unary_unary_rpc_method_handler(self.one),
            "/room.Echo/Down": grpc.unary_stream_rpc_method_handler(self.down),
            "/room.Echo/Up": grpc.stream_unary_rpc_method_handler(self.up),
            "/room.Echo/Both": grpc.stream_stream_rpc_method_handler(self.both),
            "/room.Echo/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "/room.Echo/Hang": grpc.unary_unary_rpc_method_handler(self.hang),
        }
        return methods.get(details.method)

    @staticmethod
    async def one(request, context):
        sent = pairs(context.invocation_metadata())
        assert sent["x-forwarded-for"] == "127.0.0.1", sent
        await context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-bytes-bin", b"\x00\xff")))
        return request

    @staticmethod
    async def down(request, context):
        for number in range(int(request)):
            yield str(number).encode()

    @staticmethod
    async def up(requests, context):
        return str([len(request) async for request in requests]).encode()

    @staticmethod
    async def both(requests, context):
        async for request in requests:
            yield request[::-1]

    @staticmethod
    async def fail(request, context):
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not so ünlucky")

    @staticmethod
    async def hang(request, context):
        await asyncio.sleep(3600)


async def call(certificate, port):
    with open(certificate, "rb") as file:
        trust = grpc.ssl_channel_credentials(root_certificates=file.read())
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", trust) as channel:
        call = channel.unary_unary("/room.Echo/One")(b"hello")
        assert await call == b"hello"
        assert pairs(await call.initial_metadata())["x-first"] == "1"
        trailing = pairs(await call.trailing_metadata())
        assert (trailing["x-last"], trailing["x-bytes-bin"]) == ("2", b"\x00\xff")
        large = b"\x07" * LARGE
        assert await channel.unary_unary("/room.Echo/One")(large) == large
        worked("calls, metadata at both ends, a large message")
        down = [answer async for answer in channel.unary_stream("/room.Echo/Down")(b"500")]
        assert down == [str(number).encode() for number in range(500)]
        sent = iter([b"x" * 10, b"y" * 100_000, b""])
        assert await channel.stream_unary("/room.Echo/Up")(sent) == b"[10, 100000, 0]"
        both = channel.stream_stream("/room.Echo/Both")()
        for said in (b"one", b"two", b"three"):
            await both.write(said)
            assert await both.read() == said[::-1]
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF
        assert await both.code() == grpc.StatusCode.OK
        worked("streams down, up and in both directions")
        for method, code in (
            ("Fail", grpc.StatusCode.FAILED_PRECONDITION),
            ("None", grpc.StatusCode.UNIMPLEMENTED),
            ("Hang", grpc.StatusCode.DEADLINE_EXCEEDED),
        ):
            try:
                await channel.unary_unary(f"/room.Echo/{method}")(b"", timeout=2)
                raise AssertionError(f"{method} has no error")
            except grpc.aio.AioRpcError as error:
                assert error.code() == code, (method, error)
                assert code != grpc.StatusCode.FAILED_PRECONDITION or error.details() == (
                    "not so ünlucky"
                )
        worked("errors and time-outs by their names")
        calls = [channel.unary_unary("/room.Echo/One")(str(n).encode()) for n in range(64)]
        assert await asyncio.gather(*calls) == [str(n).encode() for n in range(64)]
        worked("many at a time over one connection")


async def calls(socket, certificate, port):
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Service(),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        await call(certificate, port)
    finally:
        await server.stop(None)


def main():
    socket, certificate, for_websockets, for_grpc = sys.argv[1:]
    asyncio.run(talk(socket, certificate, for_websockets))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket)
    asyncio.run(calls(socket, certificate, for_grpc))
    worked("all")


if __name__ == "__main__":
    main()
