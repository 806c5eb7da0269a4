// What the CUDA half of this build is, and what it finds on the machine. Answers without a driver too.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace scfast {

struct CudaDevice {
  std::string name;
  int major, minor;  // compute capability
  size_t memory;     // bytes
  int binary;        // architecture of the code that this build loads there (80 for sm_80); 0: none fits
};

struct CudaInfo {
  int toolkit;                      // version of the linked runtime, 13000 for 13.0
  int driver;                       // newest version that the driver supports; 0: no driver
  std::vector<CudaDevice> devices;
  std::string error;                // why there are no devices; empty when there are
};

CudaInfo cuda_info();

}  // namespace scfast
