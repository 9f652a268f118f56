/* A fake of NVIDIA's NVML. What it answers is in the text file that the variable FAKE_NVML names, or in /etc/fake-nvml:
 *
 *     error 0                      what nvmlInit returns; without a file 9, NVML_ERROR_DRIVER_NOT_LOADED
 *     driver 580.95.05
 *     cuda 13000
 *     card 0000:01:00.0 NVIDIA GeForce RTX 3060
 *       capability 8.6
 *       memory 12288 300 246       MiB: total, used, and kept by the driver
 *       power 170 170 100 190      W: limit, default, least and most
 *     lost 0000:02:00.0            a card that does not respond
 *     p2p 0 1 2                    of two cards by number, -1 for every one: nvmlGpuP2PStatus_t, 0 means that they can
 *     nvlink 0 1
 *
 * The other facts about a card are read by read_fact() below. A fact that is not in the file is one that the card does not have.
 * gcc -shared -fPIC -o libnvidia-ml.so.1 nvml.c
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9, LOST = 15 };
enum { MOST = 32 };

typedef unsigned long long Bytes;

struct card {
    char name[96];
    unsigned domain, bus, device;
    int lost, major, minor;
    Bytes total, used, kept, bar1;
    int processes, pids[MOST];
    Bytes held[MOST];
    int display, persistence, ecc, ecc_pending, temperature, slowdown, busy;
    int uncorrected, retired, retired_pending;
    int remapped[4];
    unsigned power[4], draw;
    Bytes slowed;
};

struct pair {
    int first, second, status, nvlink;
};

struct process {
    unsigned pid;
    Bytes memory;
    unsigned instance, compute;
};

/* nvml.h: nvmlPciInfo_t, nvmlMemory_v2_t, nvmlBAR1Memory_t, nvmlUtilization_t */
struct pci {
    char old[16];
    unsigned domain, bus, device, id, subsystem;
    char address[32];
};

struct memory {
    unsigned version;
    Bytes total, reserved, free, used;
};

struct window {
    Bytes total, free, used;
};

struct rates {
    unsigned gpu, memory;
};

static int error = NOT_LOADED, cuda, cards, pairs;
static char driver[64];
static struct card card[MOST];
static struct pair pair[MOST];

static void read_fact(struct card *one, const char *key, const char *rest)
{
    Bytes total = 0, used = 0, kept = 0;
    if (!strcmp(key, "capability"))
        sscanf(rest, "%d.%d", &one->major, &one->minor);
    else if (!strcmp(key, "memory") && sscanf(rest, "%llu %llu %llu", &total, &used, &kept) >= 2)
        one->total = total << 20, one->used = used << 20, one->kept = kept << 20;
    else if (!strcmp(key, "bar1") && sscanf(rest, "%llu", &total) == 1)
        one->bar1 = total << 20;
    else if (!strcmp(key, "process") && one->processes < MOST && sscanf(rest, "%d %llu", &one->pids[one->processes], &used) == 2)
        one->held[one->processes++] = used << 20;
    else if (!strcmp(key, "display"))
        one->display = atoi(rest);
    else if (!strcmp(key, "persistence"))
        one->persistence = atoi(rest);
    else if (!strcmp(key, "ecc"))
        sscanf(rest, "%d %d", &one->ecc, &one->ecc_pending);
    else if (!strcmp(key, "uncorrected"))
        one->uncorrected = atoi(rest);
    else if (!strcmp(key, "retired")) /* pages, and whether more are pending */
        sscanf(rest, "%d %d", &one->retired, &one->retired_pending);
    else if (!strcmp(key, "remapped")) /* rows for corrected and uncorrected errors, pending, out of spares */
        sscanf(rest, "%d %d %d %d", &one->remapped[0], &one->remapped[1], &one->remapped[2], &one->remapped[3]);
    else if (!strcmp(key, "power"))
        sscanf(rest, "%u %u %u %u", &one->power[0], &one->power[1], &one->power[2], &one->power[3]);
    else if (!strcmp(key, "draw"))
        one->draw = (unsigned)atoi(rest);
    else if (!strcmp(key, "temperature")) /* now, and from which the card slows itself down */
        sscanf(rest, "%d %d", &one->temperature, &one->slowdown);
    else if (!strcmp(key, "slowed")) /* nvmlClocksEventReasons */
        one->slowed = strtoull(rest, NULL, 0);
    else if (!strcmp(key, "busy"))
        one->busy = atoi(rest);
}

static void read_line(char *line)
{
    char key[32], rest[256];
    struct pair two = {-1, -1, 0, 0};
    line[strcspn(line, "\n#")] = 0;
    *rest = 0;
    if (sscanf(line, " %31s %255[^\n]", key, rest) < 1)
        return;
    if (!strcmp(key, "error"))
        error = atoi(rest);
    else if (!strcmp(key, "driver"))
        sscanf(rest, "%63s", driver);
    else if (!strcmp(key, "cuda"))
        cuda = atoi(rest);
    else if ((!strcmp(key, "card") || !strcmp(key, "lost")) && cards < MOST) {
        struct card *one = &card[cards++];
        memset(one, 0, sizeof *one);
        one->lost = !strcmp(key, "lost");
        one->display = one->persistence = one->ecc = one->temperature = one->retired = one->remapped[0] = -1;
        sscanf(rest, "%x:%x:%x.0 %95[^\n]", &one->domain, &one->bus, &one->device, one->name);
    } else if (!strcmp(key, "p2p") && pairs < MOST && sscanf(rest, "%d %d %d", &two.first, &two.second, &two.status) == 3)
        pair[pairs++] = two;
    else if (!strcmp(key, "nvlink") && pairs < MOST && sscanf(rest, "%d %d", &two.first, &two.second) == 2) {
        two.nvlink = 1;
        pair[pairs++] = two;
    } else if (cards)
        read_fact(&card[cards - 1], key, rest);
}

int nvmlInitWithFlags(unsigned flags)
{
    const char *path = getenv("FAKE_NVML");
    char line[512];
    FILE *file = fopen(path ? path : "/etc/fake-nvml", "r");
    (void)flags;
    error = NOT_LOADED;
    cards = pairs = 0;
    while (file && fgets(line, sizeof line, file))
        read_line(line);
    if (file)
        fclose(file);
    return error;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == NOT_LOADED ? "Driver Not Loaded" : "an error of the fake"; }

static int text(char *into, unsigned length, const char *format, const char *value)
{
    snprintf(into, length, format, value);
    return SUCCESS;
}

int nvmlSystemGetNVMLVersion(char *into, unsigned length) { return text(into, length, "13.%s", driver); }
int nvmlSystemGetDriverVersion(char *into, unsigned length) { return text(into, length, "%s", driver); }
int nvmlDeviceGetName(struct card *of, char *into, unsigned length) { return text(into, length, "%s", of->name); }

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = cuda;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = (unsigned)cards;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct card **of)
{
    if (index >= (unsigned)cards)
        return NOT_FOUND;
    *of = &card[index];
    return card[index].lost ? LOST : SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(struct card *of, int *major, int *minor)
{
    *major = of->major;
    *minor = of->minor;
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(struct card *of, struct pci *pci)
{
    memset(pci, 0, sizeof *pci);
    pci->domain = of->domain, pci->bus = of->bus, pci->device = of->device;
    snprintf(pci->address, sizeof pci->address, "%08X:%02X:%02X.0", of->domain, of->bus, of->device);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(struct card *of, struct memory *memory)
{
    memory->total = of->total, memory->reserved = of->kept, memory->free = of->total - of->used - of->kept, memory->used = of->used;
    return of->total ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetBAR1MemoryInfo(struct card *of, struct window *window)
{
    window->total = window->free = of->bar1, window->used = 0;
    return of->bar1 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct card *of, unsigned *count, struct process *found)
{
    unsigned room = *count;
    *count = (unsigned)of->processes;
    if (room < *count)
        return INSUFFICIENT_SIZE;
    for (unsigned each = 0; each < *count; each++)
        found[each] = (struct process){(unsigned)of->pids[each], of->held[each], 0, 0};
    return SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct card *of, unsigned *count, struct process *found)
{
    (void)of, (void)found;
    *count = 0;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct card *of, struct rates *rates)
{
    rates->gpu = (unsigned)of->busy, rates->memory = 0;
    return SUCCESS;
}

static int known(int value, int *into)
{
    *into = value;
    return value < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetDisplayActive(struct card *of, int *on) { return known(of->display, on); }
int nvmlDeviceGetPersistenceMode(struct card *of, int *on) { return known(of->persistence, on); }
int nvmlDeviceGetRetiredPagesPendingStatus(struct card *of, int *on) { return known(of->retired < 0 ? -1 : of->retired_pending, on); }

int nvmlDeviceGetEccMode(struct card *of, int *now, int *later)
{
    *later = of->ecc_pending;
    return known(of->ecc, now);
}

int nvmlDeviceGetTotalEccErrors(struct card *of, int type, int counter, Bytes *count)
{
    (void)type, (void)counter;
    *count = (Bytes)of->uncorrected;
    return of->ecc < 0 ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetRetiredPages(struct card *of, int cause, unsigned *count, Bytes *pages)
{
    unsigned room = *count;
    if (of->retired < 0)
        return NOT_SUPPORTED;
    *count = cause == 0 ? (unsigned)of->retired : 0;
    if (room < *count)
        return INSUFFICIENT_SIZE;
    for (unsigned each = 0; each < *count; each++)
        pages[each] = each;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(struct card *of, int *corrected, int *uncorrected, int *pending, int *failed)
{
    *uncorrected = of->remapped[1], *pending = of->remapped[2], *failed = of->remapped[3];
    return known(of->remapped[0], corrected);
}

static int power(unsigned watts, unsigned *milliwatts)
{
    *milliwatts = watts * 1000;
    return watts ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerManagementLimit(struct card *of, unsigned *limit) { return power(of->power[0], limit); }
int nvmlDeviceGetPowerManagementDefaultLimit(struct card *of, unsigned *limit) { return power(of->power[1], limit); }
int nvmlDeviceGetPowerUsage(struct card *of, unsigned *drawn) { return power(of->draw, drawn); }

int nvmlDeviceGetPowerManagementLimitConstraints(struct card *of, unsigned *least, unsigned *most)
{
    *least = of->power[2] * 1000, *most = of->power[3] * 1000;
    return of->power[3] ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTemperature(struct card *of, int sensor, int *degrees)
{
    (void)sensor;
    return known(of->temperature, degrees);
}

int nvmlDeviceGetTemperatureThreshold(struct card *of, int which, int *degrees)
{
    *degrees = of->slowdown;
    return which == 1 && of->slowdown ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetCurrentClocksEventReasons(struct card *of, Bytes *reasons)
{
    *reasons = of->slowed;
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(struct card *one, struct card *other, int what, int *status)
{
    int first = (int)(one - card), second = (int)(other - card), nvlink = what == 2;
    *status = 5; /* NVML_P2P_STATUS_NOT_SUPPORTED */
    for (int each = 0; each < pairs; each++)
        if (pair[each].nvlink == nvlink && (pair[each].first < 0 || pair[each].first == first)
            && (pair[each].second < 0 || pair[each].second == second))
            *status = pair[each].status;
    return SUCCESS;
}
