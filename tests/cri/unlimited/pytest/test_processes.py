import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import shared_memory

import pytest

METHODS = ["fork", "spawn", "forkserver"]


def square(n):
    return n * n


def count_up(value):
    for _ in range(100):
        with value.get_lock():
            value.value += 1


def answer(queue, pipe):
    queue.put(pipe.recv() + 1)


@pytest.mark.parametrize("method", METHODS)
def test_pool_maps_in_order(method):
    with multiprocessing.get_context(method).Pool(4) as pool:
        assert pool.map(square, range(100)) == [n * n for n in range(100)]


@pytest.mark.parametrize("method", METHODS)
def test_value_that_is_shared_is_counted_up_by_all(method):
    context = multiprocessing.get_context(method)
    value = context.Value("i", 0)
    processes = [context.Process(target=count_up, args=(value,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert value.value == 400


@pytest.mark.parametrize("method", METHODS)
def test_queue_and_pipe_carry_a_message(method):
    context = multiprocessing.get_context(method)
    queue, (ours, theirs) = context.Queue(), context.Pipe()
    process = context.Process(target=answer, args=(queue, theirs))
    process.start()
    ours.send(41)
    assert queue.get(timeout=60) == 42
    process.join()
    assert process.exitcode == 0


def test_shared_memory_is_seen_by_its_name():
    memory = shared_memory.SharedMemory(create=True, size=10_000_000)
    try:
        memory.buf[9_999_999] = 7
        again = shared_memory.SharedMemory(name=memory.name)
        assert again.buf[9_999_999] == 7
        again.close()
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_executors_of_processes_and_threads_agree(workers):
    numbers = range(50)
    with concurrent.futures.ProcessPoolExecutor(workers) as executor:
        by_processes = list(executor.map(square, numbers))
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        assert list(executor.map(square, numbers)) == by_processes


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code_of_a_program_is_seen(code):
    line = [sys.executable, "-c", f"import sys; sys.exit({code})"]
    assert subprocess.run(line).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_signal_ends_a_program(number):
    process = subprocess.Popen(["sleep", "1000"])
    process.send_signal(number)
    assert process.wait() == -number


def test_signal_reaches_its_handler():
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: seen.append(number))
    os.kill(os.getpid(), signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, before)
    assert seen == [signal.SIGUSR2]


@pytest.mark.parametrize("size", [1, 65536, 5_000_000])
def test_program_gets_and_gives_all_bytes(size):
    data = os.urandom(size)
    assert subprocess.run(["cat"], input=data, stdout=subprocess.PIPE).stdout == data


@pytest.mark.parametrize("threads", [2, 16, 100])
def test_threads_count_under_a_lock(threads):
    lock, total = threading.Lock(), [0]

    def add():
        for _ in range(50):
            with lock:
                total[0] += 1

    started = [threading.Thread(target=add) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert total == [50 * threads]


@pytest.mark.skipif(sys.platform != "win32", reason="Windows only")
def test_what_another_system_has():
    raise AssertionError


@pytest.mark.xfail(raises=ProcessLookupError, strict=True)
def test_process_that_is_not_there():
    os.kill(2**22 - 1, 0)
