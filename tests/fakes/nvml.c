/* A fake of NVIDIA's NVML. What it answers is in the text file that the variable FAKE_NVML names, or in /etc/fake-nvml:
 *
 *     error 0                      what nvmlInit returns; without a file 9, NVML_ERROR_DRIVER_NOT_LOADED
 *     driver 580.95.05
 *     cuda 13000
 *     card 0000:01:00.0 NVIDIA GeForce RTX 3060
 *       capability 8.6
 *       memory 12288 300 246       MiB: total, used, and kept by the driver
 *       power 170 170 100 190      W: limit, default, least and most
 *       persistence 0
 *     lost 0000:02:00.0            a card that does not respond
 *     p2p 0 1 2                    of two cards by number, -1 for every one: nvmlGpuP2PStatus_t, 0 means that they can
 *     nvlink 0 1
 *
 * The other facts about a card are read by read_fact() below. A fact that is not in the file is one that the card does not have.
 *
 * The file is also the state of the cards, for all processes: a power limit that is set is written there. As with the real driver, only a
 * process with CAP_SYS_ADMIN (or FAKE_NVML_ADMIN=1) may do that. With `forgets 1`, a limit is forgotten at the next nvmlInit without
 * persistence mode, as if nobody had used the card since. While FILE.slow exists, each change of a limit takes a minute.
 * gcc -shared -fPIC -o libnvidia-ml.so.1 nvml.c
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9, LOST = 15 };
enum { MOST = 32, CAP_SYS_ADMIN = 21 };

typedef unsigned long long Bytes;

struct card {
    char name[96], uuid[96];
    unsigned domain, bus, device;
    int lost, major, minor;
    Bytes total, used, kept, bar1;
    int processes, pids[MOST];
    Bytes held[MOST];
    int display, persistence, ecc, ecc_pending, temperature, slowdown, busy;
    int uncorrected, retired, retired_pending;
    int remapped[4];
    unsigned power[4], draw; /* mW */
    int lanes, generation, forgets;
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
    else if (!strcmp(key, "uuid"))
        sscanf(rest, "%95s", one->uuid);
    else if (!strcmp(key, "link")) /* lanes and generation now */
        sscanf(rest, "%d %d", &one->lanes, &one->generation);
    else if (!strcmp(key, "forgets"))
        one->forgets = atoi(rest);
    else if (!strcmp(key, "power")) {
        double watts[4] = {0};
        sscanf(rest, "%lf %lf %lf %lf", &watts[0], &watts[1], &watts[2], &watts[3]);
        for (int each = 0; each < 4; each++)
            one->power[each] = (unsigned)(watts[each] * 1000 + 0.5);
    } else if (!strcmp(key, "draw"))
        one->draw = (unsigned)(atof(rest) * 1000);
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

static const char *told(void)
{
    const char *path = getenv("FAKE_NVML");
    return path ? path : "/etc/fake-nvml";
}

static int read_told(void)
{
    char line[512];
    FILE *file = fopen(told(), "r");
    error = NOT_LOADED;
    cards = pairs = 0;
    while (file && fgets(line, sizeof line, file))
        read_line(line);
    if (file)
        fclose(file);
    return error;
}

/* Replace the line of a fact about a card. */
static int write_fact(const struct card *of, const char *key, const char *value)
{
    static char text[1 << 16];
    char line[512], word[32], path[PATH_MAX], whole[PATH_MAX + 8];
    int at = -1, done = 0;
    FILE *file = fopen(told(), "r");
    *text = 0;
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, " %31s", word) == 1 && (!strcmp(word, "card") || !strcmp(word, "lost")))
            at++;
        else if (at == (int)(of - card) && !strcmp(word, key))
            snprintf(line, sizeof line, "  %s %s\n", key, value), done = 1;
        strncat(text, line, sizeof text - strlen(text) - 1);
    }
    if (file)
        fclose(file);
    /* In one move, since other processes read it at any time; behind a link, since only that folder can be written. */
    if (!done || !realpath(told(), path) || snprintf(whole, sizeof whole, "%s.new", path) < 0 || !(file = fopen(whole, "w")))
        return NO_PERMISSION;
    fputs(text, file);
    fchmod(fileno(file), 0644); /* as the cards' state, every user can read it */
    fclose(file);
    rename(whole, path);
    return read_told();
}

static int write_limit(const struct card *of, unsigned milliwatts)
{
    char value[64];
    snprintf(value, sizeof value, "%g %g %g %g", milliwatts / 1e3, of->power[1] / 1e3, of->power[2] / 1e3, of->power[3] / 1e3);
    return write_fact(of, "power", value);
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    if (read_told())
        return error;
    for (int each = 0; each < cards; each++)
        if (card[each].forgets && !card[each].persistence && card[each].power[0] != card[each].power[1])
            write_limit(&card[each], card[each].power[1]); /* who may not write it does not forget it */
    return error;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code)
{
    return code == NOT_LOADED ? "Driver Not Loaded" : code == NO_PERMISSION ? "Insufficient Permissions" : "an error of the fake";
}

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
    int code = read_told(); /* the state now: the recorder asks for the number each second */
    *count = (unsigned)cards;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct card **of)
{
    if (index >= (unsigned)cards)
        return NOT_FOUND;
    *of = &card[index];
    return card[index].lost ? LOST : SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct card **of)
{
    for (int each = 0; each < cards; each++)
        if (!strcmp(card[each].uuid, uuid))
            return nvmlDeviceGetHandleByIndex_v2((unsigned)each, of);
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(struct card *of, char *into, unsigned length)
{
    return *of->uuid ? text(into, length, "%s", of->uuid) : NOT_SUPPORTED;
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

static int power(unsigned known, unsigned *milliwatts)
{
    *milliwatts = known;
    return known ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerManagementLimit(struct card *of, unsigned *limit) { return power(of->power[0], limit); }
int nvmlDeviceGetPowerManagementDefaultLimit(struct card *of, unsigned *limit) { return power(of->power[1], limit); }
int nvmlDeviceGetPowerUsage(struct card *of, unsigned *drawn) { return power(of->draw, drawn); }

int nvmlDeviceGetPowerManagementLimitConstraints(struct card *of, unsigned *least, unsigned *most)
{
    *least = of->power[2], *most = of->power[3];
    return of->power[3] ? SUCCESS : NOT_SUPPORTED;
}

static int may_change(void)
{
    char line[128];
    Bytes effective = 0;
    FILE *file;
    if (getenv("FAKE_NVML_ADMIN"))
        return atoi(getenv("FAKE_NVML_ADMIN"));
    file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file) && sscanf(line, "CapEff: %llx", &effective) != 1)
        ;
    if (file)
        fclose(file);
    return (effective >> CAP_SYS_ADMIN) & 1;
}

int nvmlDeviceSetPersistenceMode(struct card *of, int mode)
{
    if (of->persistence < 0)
        return NOT_SUPPORTED;
    return may_change() ? write_fact(of, "persistence", mode ? "1" : "0") : NO_PERMISSION;
}

int nvmlDeviceSetPowerManagementLimit(struct card *of, unsigned limit)
{
    char slow[256];
    int code;
    if (!of->power[3])
        return NOT_SUPPORTED;
    if (!may_change())
        return NO_PERMISSION;
    if (limit < of->power[2] || limit > of->power[3])
        return INVALID_ARGUMENT;
    code = write_limit(of, limit);
    snprintf(slow, sizeof slow, "%s.slow", told());
    if (!access(slow, F_OK))
        sleep(60);
    return code;
}

int nvmlDeviceGetCurrPcieLinkWidth(struct card *of, int *lanes) { return known(of->lanes ? of->lanes : -1, lanes); }
int nvmlDeviceGetCurrPcieLinkGeneration(struct card *of, int *generation) { return known(of->generation ? of->generation : -1, generation); }

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

/* its name before driver 535 */
int nvmlDeviceGetCurrentClocksThrottleReasons(struct card *of, Bytes *reasons)
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
