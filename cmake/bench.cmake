# SPDX-License-Identifier: Apache-2.0
find_package(benchmark REQUIRED)
get_property(_kernels GLOBAL PROPERTY LOWTIDE_KERNELS)
foreach(kernel ${_kernels})
  cmake_path(GET kernel FILENAME stem)
  add_executable(${stem}_bench bench/cpp/${stem}_bench.cc)
  target_include_directories(${stem}_bench PRIVATE ${PROJECT_SOURCE_DIR}/bench/cpp)
  target_link_libraries(${stem}_bench PRIVATE lowtide benchmark::benchmark_main)
endforeach()

# What tools/instruction_counts.py counts the instructions of.
file(GLOB _counted_sources CONFIGURE_DEPENDS bench/cpp/counted/*.cc)
add_executable(lowtide_counted ${_counted_sources})
target_include_directories(lowtide_counted PRIVATE bench/cpp bench/cpp/counted)
target_link_libraries(lowtide_counted PRIVATE lowtide benchmark::benchmark)
