"""A worker process whose first message is none: what a broken one may send."""

import socket
import struct
import sys
import time

socket.socket(fileno=int(sys.argv[1])).sendall(struct.pack("<QI", 5, 0) + b"\x80\x05junk")
time.sleep(600)
