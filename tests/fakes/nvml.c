/* A fake of NVIDIA's NVML: one GPU, or an error, as one line in /etc/fake-nvml says:
 *     ERROR DRIVER CUDA CAPABILITY NAME        0 580.95.05 13000 9.0 Fake
 * gcc -shared -fPIC -o libnvidia-ml.so.1 nvml.c
 */
#include <stdio.h>
#include <string.h>

static int error = 9, cuda, major, minor;
static char driver[64], name[64];

int nvmlInit_v2(void)
{
    FILE *settings = fopen("/etc/fake-nvml", "r");
    if (!settings || fscanf(settings, "%d %63s %d %d.%d %63s", &error, driver, &cuda, &major, &minor, name) != 6)
        error = 9; /* NVML_ERROR_DRIVER_NOT_LOADED */
    if (settings)
        fclose(settings);
    return error;
}

int nvmlSystemGetNVMLVersion(char *text, unsigned int length)
{
    snprintf(text, length, "13.%s", driver);
    return 0;
}

int nvmlSystemGetDriverVersion(char *text, unsigned int length)
{
    snprintf(text, length, "%s", driver);
    return 0;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = cuda;
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    *count = 1;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device)
{
    *device = &error;
    return index != 0;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *first, int *second)
{
    *first = major;
    *second = minor;
    return 0;
}

int nvmlDeviceGetName(void *device, char *text, unsigned int length)
{
    snprintf(text, length, "%s", name);
    return 0;
}
