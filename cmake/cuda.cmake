# SPDX-License-Identifier: Apache-2.0
# The CUDA kernels: every csrc/<family>/<stem>.cu beside a kernel of the library, in the static library lowtide_cuda.
#
# nvcc is called directly rather than through enable_language(CUDA): the flags are the numeric contract, the same .cu
# also has to give PTX for the emulator, and a toolkit without a driver or device is enough.
include_guard()

set(LOWTIDE_CUDA_ACTIVE OFF)
if(LOWTIDE_CUDA STREQUAL "OFF")
  set(LOWTIDE_CUDA_SKIPPED "LOWTIDE_CUDA=OFF")
else()
  find_program(LOWTIDE_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda/bin)
  if(LOWTIDE_NVCC)
    execute_process(COMMAND ${LOWTIDE_NVCC} --version OUTPUT_VARIABLE _version ERROR_QUIET)
    string(REGEX MATCH "release ([0-9]+)\\.([0-9]+)" _release "${_version}")
    if(CMAKE_MATCH_1 AND CMAKE_MATCH_1 LESS 13)
      set(LOWTIDE_CUDA_SKIPPED "nvcc is ${CMAKE_MATCH_1}.${CMAKE_MATCH_2}; the kernels need CUDA 13 or newer")
    elseif(LOWTIDE_SANITIZE)
      set(LOWTIDE_CUDA_SKIPPED "LOWTIDE_SANITIZE is set; the CUDA lane brings its own sanitizer builds")
    else()
      set(LOWTIDE_CUDA_ACTIVE ON)
    endif()
  else()
    set(LOWTIDE_CUDA_SKIPPED "nvcc was not found")
  endif()
  if(LOWTIDE_CUDA STREQUAL "ON" AND NOT LOWTIDE_CUDA_ACTIVE)
    message(FATAL_ERROR "LOWTIDE_CUDA=ON, but ${LOWTIDE_CUDA_SKIPPED}. Install the CUDA 13 compiler and put nvcc on PATH, "
      "or configure with -DLOWTIDE_CUDA=OFF")
  endif()
endif()
if(NOT LOWTIDE_CUDA_ACTIVE)
  message(STATUS "CUDA kernels: left out (${LOWTIDE_CUDA_SKIPPED})")
  if(LOWTIDE_TESTS AND NOT LOWTIDE_CUDA STREQUAL "OFF")
    enable_testing()
    add_test(NAME cuda.lane COMMAND ${CMAKE_COMMAND} -E echo "SKIPPED: the CUDA kernels were not built or run: ${LOWTIDE_CUDA_SKIPPED}")
    set_tests_properties(cuda.lane PROPERTIES SKIP_REGULAR_EXPRESSION "SKIPPED")
  endif()
  return()
endif()

# nvcc may be a wrapper somewhere else: it says itself where its toolkit is.
execute_process(COMMAND ${LOWTIDE_NVCC} --dryrun -c x.cu ERROR_VARIABLE _dryrun OUTPUT_QUIET)
string(REGEX MATCH "#\\$ TOP=([^\n]*)" _top "${_dryrun}")
get_filename_component(LOWTIDE_CUDA_HOME "${CMAKE_MATCH_1}" REALPATH)
if(NOT EXISTS ${LOWTIDE_CUDA_HOME}/include/cuda_runtime_api.h)
  message(FATAL_ERROR "the CUDA toolkit of ${LOWTIDE_NVCC} has no headers in ${LOWTIDE_CUDA_HOME}/include; install cudart's development files")
endif()

# IEEE arithmetic as written, on the device and in nvcc's host pass; a kernel that spills fails the build.
set(LOWTIDE_NVCC_FLAGS -std=c++17 -O3 --fmad=false -ftz=false -prec-div=true -prec-sqrt=true -lineinfo
  -Xcompiler=-ffp-contract=off,-fPIC,-fvisibility=hidden -I${PROJECT_SOURCE_DIR}/csrc)
set(LOWTIDE_CUDA_SM 80 90 100)  # machine code; PTX of the last one is carried along for newer devices
set(_gencode)
foreach(sm ${LOWTIDE_CUDA_SM})
  list(APPEND _gencode -gencode arch=compute_${sm},code=sm_${sm})
endforeach()
list(GET LOWTIDE_CUDA_SM -1 _last)
list(APPEND _gencode -gencode arch=compute_${_last},code=compute_${_last})

# lowtide_nvcc(output source mode...): one nvcc call with dependency tracking.
function(lowtide_nvcc output source log)
  add_custom_command(OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -DLOG=${log} -P ${PROJECT_SOURCE_DIR}/cmake/nvcc.cmake --
      ${LOWTIDE_NVCC} ${LOWTIDE_NVCC_FLAGS} ${ARGN} -MD -MF ${output}.d -MT ${output} -o ${output} ${source}
    DEPENDS ${source} DEPFILE ${output}.d COMMENT "nvcc ${output}" VERBATIM)
endfunction()

add_library(lowtide_cuda STATIC)
set_target_properties(lowtide_cuda PROPERTIES LINKER_LANGUAGE CXX)
target_include_directories(lowtide_cuda PUBLIC ${PROJECT_SOURCE_DIR}/csrc)
# What a program on a real device links; the tests link the emulator's runtime instead.
add_library(lowtide_cudart INTERFACE)
target_link_libraries(lowtide_cudart INTERFACE ${LOWTIDE_CUDA_HOME}/lib64/libcudart_static.a dl rt Threads::Threads)

get_property(_kernels GLOBAL PROPERTY LOWTIDE_KERNELS)
set(LOWTIDE_CUDA_STEMS base/reduce)
foreach(kernel ${_kernels})
  if(EXISTS ${PROJECT_SOURCE_DIR}/csrc/${kernel}.cu)
    list(APPEND LOWTIDE_CUDA_STEMS ${kernel})
  endif()
endforeach()
file(GLOB_RECURSE _found RELATIVE ${PROJECT_SOURCE_DIR}/csrc CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/*.cu)
foreach(file ${_found})
  string(REGEX REPLACE "\\.cu$" "" stem ${file})
  if(NOT stem IN_LIST LOWTIDE_CUDA_STEMS)
    message(FATAL_ERROR "csrc/${file} belongs to no kernel: add lowtide_kernel(...) for its stem to CMakeLists.txt")
  endif()
endforeach()

set(LOWTIDE_CUDA_LOGS)
foreach(stem ${LOWTIDE_CUDA_STEMS})
  string(REPLACE "/" "_" _name ${stem})
  set(_object ${CMAKE_BINARY_DIR}/cuda/${_name}.o)
  lowtide_nvcc(${_object} ${PROJECT_SOURCE_DIR}/csrc/${stem}.cu ${_object}.ptxas.txt
    ${_gencode} -Xptxas=-v,-warn-spills,-Werror -c)
  set_source_files_properties(${_object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(lowtide_cuda PRIVATE ${_object})
  list(APPEND LOWTIDE_CUDA_LOGS ${_object}.ptxas.txt)
endforeach()

if(LOWTIDE_TESTS)
  include(${PROJECT_SOURCE_DIR}/cmake/cuda_tests.cmake)
endif()
