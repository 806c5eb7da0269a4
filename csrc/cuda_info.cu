#include "cuda_info.hpp"

#include <cuda_runtime.h>

namespace scfast {
namespace {

// Exists to be asked which of the compiled architectures a device loads.
__global__ void probe() {}

int loaded_architecture(int device) {
  cudaFuncAttributes attributes{};
  if (cudaSetDevice(device) != cudaSuccess || cudaFuncGetAttributes(&attributes, probe) != cudaSuccess) {
    cudaGetLastError();  // the next call must not report this one's error
    return 0;
  }
  return attributes.binaryVersion;
}

}  // namespace

CudaInfo cuda_info() {
  CudaInfo info{};
  cudaRuntimeGetVersion(&info.toolkit);
  cudaDriverGetVersion(&info.driver);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    info.error = cudaGetErrorString(status);
    cudaGetLastError();
    return info;
  }
  int current = 0;
  cudaGetDevice(&current);
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    info.devices.push_back(
        {properties.name, properties.major, properties.minor, properties.totalGlobalMem, loaded_architecture(device)});
  }
  cudaSetDevice(current);
  return info;
}

}  // namespace scfast
