/* Loops that measure one thing each: `loops NAME COUNT`. */
#include <fcntl.h>
#include <linux/random.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static double state[5][7] = {
    {0, 0, 0, 0, 0, 0, 39.47},
    {4.84, -1.16, -0.10, 0.60, 2.81, -0.02, 0.037},
    {8.34, 4.12, -0.40, -1.01, 1.82, 0.008, 0.011},
    {12.89, -15.11, -0.22, 1.08, 0.86, -0.01, 0.0017},
    {15.37, -25.91, 0.17, 0.97, 0.59, -0.03, 0.002},
};

/* The planets' orbits, as in the well-known benchmark. */
static double nbody(long count)
{
    for (long step = 0; step < count; step++) {
        for (int i = 0; i < 5; i++)
            for (int j = i + 1; j < 5; j++) {
                double d[3], squared = 0;
                for (int k = 0; k < 3; k++) {
                    d[k] = state[i][k] - state[j][k];
                    squared += d[k] * d[k];
                }
                double force = 0.001 / (squared * sqrt(squared));
                for (int k = 0; k < 3; k++) {
                    state[i][k + 3] -= d[k] * state[j][6] * force;
                    state[j][k + 3] += d[k] * state[i][6] * force;
                }
            }
        for (int i = 0; i < 5; i++)
            for (int k = 0; k < 3; k++)
                state[i][k] += 0.001 * state[i][k + 3];
    }
    return state[0][0];
}

static double matrix(long count)
{
    enum { N = 200 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            a[i][j] = i + j, b[i][j] = i - j;
    while (count--)
        for (int i = 0; i < N; i++)
            for (int k = 0; k < N; k++)
                for (int j = 0; j < N; j++)
                    c[i][j] += a[i][k] * b[k][j];
    return c[7][9];
}

static void *primes(void *count)
{
    long found = 0;
    for (long n = 3; n < (long)count; n += 2) {
        long d = 3;
        while (d * d <= n && n % d)
            d += 2;
        found += d * d > n;
    }
    return (void *)found;
}

/* Has the kernel take its generator of random numbers for seeded: without a source of entropy it spins for a second of
   the clock's time when a program first asks it, on any processor. */
static int seed(void)
{
    struct {
        struct rand_pool_info info;
        char bytes[64];
    } pool = {{512, 64}, "not random"};
    int file = open("/dev/urandom", O_WRONLY);
    return file < 0 || ioctl(file, RNDADDENTROPY, &pool) != 0;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    long count = argc > 2 ? atol(argv[2]) : 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(name, "seed")) {
        return seed();
    } else if (!strcmp(name, "nbody")) {
        printf("%f\n", nbody(count));
    } else if (!strcmp(name, "matrix")) {
        printf("%f\n", matrix(count));
    } else if (!strcmp(name, "sine")) {
        double sum = 0;
        for (long i = 0; i < count; i++)
            sum += sin(i * 0.001) * exp(-i * 1e-7);
        printf("%f\n", sum);
    } else if (!strcmp(name, "syscall")) {
        while (count--)
            syscall(SYS_getppid);
    } else if (!strcmp(name, "fork")) {
        while (count--) {
            pid_t child = fork();
            if (child == 0)
                _exit(0);
            waitpid(child, NULL, 0);
        }
    } else if (!strcmp(name, "fault")) {
        enum { PAGES = 256 };
        while (count--) {
            char *pages = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            for (int i = 0; i < PAGES; i++)
                pages[i * 4096] = 1;
            munmap(pages, PAGES * 4096);
        }
    } else if (!strcmp(name, "threads")) {
        /* What neither prints the compiler leaves out. */
        pthread_t other;
        void *found;
        puts("THREADS begin");
        pthread_create(&other, NULL, primes, (void *)count);
        long own = (long)primes((void *)count);
        pthread_join(other, &found);
        printf("THREADS end: %ld, %ld\n", own, (long)found);
    } else {
        return 2;
    }
    return 0;
}
