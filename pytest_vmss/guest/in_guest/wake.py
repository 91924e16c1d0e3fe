"""Makes a guest that was restored from saved memory current: its clock and its random numbers.

Runs in guests, and imports nothing of this package. Guests restored from the same memory would
otherwise draw the same random numbers. Reads the time in ns and a seed in hexadecimal, in a line
each, and writes the kernel's boot id.

A guest that was just restored runs everything for the first time, emulated: what Python does not
have built in would take as long to import as all the rest takes.
"""

import fcntl
import sys
import time

# <linux/random.h>
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207

# The hardware's clock, which QEMU keeps to the host's: it is not late if the host is busy, as
# the time is that was sent. A guest may have set it to anything, so it may only be that late.
RTC = "/sys/class/rtc/rtc0/since_epoch"
LATE = 120 * 10**9


def main() -> None:
    """Sets the clock, adds the seed to the kernel's pool, and reseeds from it."""
    sent, digits = sys.stdin.read().split()
    time.clock_settime_ns(time.CLOCK_REALTIME, current(int(sent)))
    seed = bytes.fromhex(digits)
    sizes = (8 * len(seed), len(seed))  # of struct rand_pool_info: in bits, and in bytes
    head = b"".join(size.to_bytes(4, sys.byteorder) for size in sizes)
    with open("/dev/urandom", "wb", buffering=0) as pool:
        fcntl.ioctl(pool, RNDADDENTROPY, head + seed)
        fcntl.ioctl(pool, RNDRESEEDCRNG)
    with open("/proc/sys/kernel/random/boot_id") as boot_id:
        sys.stdout.write(boot_id.read())


def current(sent: int) -> int:
    """The time in ns, which is that of the hardware's clock if it is a little after a given one."""
    try:
        with open(RTC) as clock:
            now = int(clock.read()) * 10**9
    except (OSError, ValueError):
        return sent
    return now if sent < now < sent + LATE else sent


if __name__ == "__main__":
    main()
