"""Stop the real writer process where it hurts."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import threading

from checkpoints.writer import WriterProcess


def stop(writer: WriterProcess) -> None:
    os.kill(writer._process.pid, signal.SIGSTOP)


def kill_when_it_has_a_command(writer: WriterProcess) -> threading.Thread:
    """In the background, SIGKILL the stopped writer once a command has reached it."""
    process, connection = writer._process, writer._socket

    def kill() -> None:
        while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"    "))[0] == 0:
            pass
        os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread
