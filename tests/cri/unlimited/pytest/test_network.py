import asyncio
import http.server
import os
import socket
import threading
import urllib.error
import urllib.request

import pytest


@pytest.fixture
def served(tmp_path):
    handler = lambda *args: http.server.SimpleHTTPRequestHandler(*args, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("size", [0, 1, 100_000, 5_000_000])
def test_page_arrives_whole(served, tmp_path, size):
    (tmp_path / "page").write_bytes(b"p" * size)
    with urllib.request.urlopen(f"{served}/page") as answer:
        assert answer.read() == b"p" * size


def test_page_that_is_missing_is_not_found(served):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{served}/missing")


@pytest.mark.parametrize("family, address", [
    (socket.AF_INET, ("127.0.0.1", 0)),
    (socket.AF_INET6, ("::1", 0)),
    (socket.AF_UNIX, "socket"),
])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_socket_carries_a_message(family, address, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(family, kind) as server, socket.socket(family, kind) as client:
        server.bind(address)
        if kind == socket.SOCK_STREAM:
            server.listen()
        client.connect(server.getsockname())
        client.sendall(b"hello")
        receiver = server.accept()[0] if kind == socket.SOCK_STREAM else server
        assert receiver.recv(100) == b"hello"
        receiver.close()


def test_port_without_a_server_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(taken.getsockname())


def test_descriptor_is_passed_by_a_socket(tmp_path):
    ours, theirs = socket.socketpair()
    with open(tmp_path / "file", "w+") as file, ours, theirs:
        socket.send_fds(ours, [b"x"], [file.fileno()])
        _, [passed], *_ = socket.recv_fds(theirs, 1, 1)
        os.write(passed, b"by the other end")
        os.close(passed)
        file.seek(0)
        assert file.read() == "by the other end"


async def double(reader, writer):
    while line := await reader.readline():
        writer.write(b"%d\n" % (2 * int(line)))
        await writer.drain()
    writer.close()


async def ask(port, number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%d\n" % number)
    answer = int(await reader.readline())
    writer.close()
    return answer


@pytest.mark.parametrize("clients", [1, 10, 100])
def test_server_of_asyncio_answers_all_at_once(clients):
    async def run():
        server = await asyncio.start_server(double, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.gather(*(ask(port, number) for number in range(clients)))

    assert asyncio.run(run()) == [2 * number for number in range(clients)]


@pytest.mark.parametrize("programs", [1, 10])
def test_programs_of_asyncio_end_with_their_output(programs):
    async def program(number):
        line = ["sh", "-c", f"echo {number}"]
        process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return int(output)

    async def run():
        return await asyncio.gather(*map(program, range(programs)))

    assert asyncio.run(run()) == list(range(programs))


def test_task_that_takes_too_long_is_cancelled():
    async def run():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.sleep(1000), 0.05)

    asyncio.run(run())
