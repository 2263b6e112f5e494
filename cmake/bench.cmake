# SPDX-License-Identifier: Apache-2.0
find_package(benchmark REQUIRED)
get_property(_kernels GLOBAL PROPERTY LOWTIDE_KERNELS)
foreach(kernel ${_kernels})
  cmake_path(GET kernel FILENAME stem)
  add_executable(${stem}_bench bench/cpp/${stem}_bench.cc)
  target_include_directories(${stem}_bench PRIVATE ${PROJECT_SOURCE_DIR}/bench/cpp)
  target_link_libraries(${stem}_bench PRIVATE lowtide benchmark::benchmark_main)
endforeach()
