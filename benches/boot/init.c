/* The guest's whole user space: says when it was started by the guest's clock, and ends the machine. */
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec now;
    char line[64];

    clock_gettime(CLOCK_MONOTONIC, &now);
    int length = snprintf(line, sizeof line, "INIT %ld.%06ld\n", now.tv_sec, now.tv_nsec / 1000);
    if (write(1, line, length) != length)
        return 1;
    if (argc > 1 && !strcmp(argv[1], "sleep"))
        for (;;)
            pause();
    reboot(argc > 1 && !strcmp(argv[1], "reboot") ? RB_AUTOBOOT : RB_POWER_OFF);
    return 1;
}
