# SPDX-License-Identifier: Apache-2.0
# Tests of the CUDA kernels with no GPU: the PTX that nvcc generates, translated to C++ and executed on the CPU under
# the library's own nvcc-compiled host code, against the scalar reference's bits. Three builds: plain (three orders of
# threads and blocks, an old and a new PTX), ThreadSanitizer (data races), AddressSanitizer + UBSan (memory).
include_guard()
enable_testing()
find_package(GTest REQUIRED)
find_package(Python3 REQUIRED COMPONENTS Interpreter)

set(LOWTIDE_EMU ${PROJECT_SOURCE_DIR}/tests/cuda/emu)
file(GLOB LOWTIDE_PTX2CPP CONFIGURE_DEPENDS ${LOWTIDE_EMU}/ptx2cpp/*.py ${LOWTIDE_EMU}/ptx2cpp/opcodes/*.py)
set(LOWTIDE_PTX_ARCHS 80 100)

# The machine and the fake CUDA runtime, never instrumented: they only tell the sanitizer what the kernels do.
set(LOWTIDE_SANITIZE_plain)
set(LOWTIDE_SANITIZE_tsan -fsanitize=thread)
set(LOWTIDE_SANITIZE_asan -fsanitize=address,undefined -fno-sanitize-recover=undefined)
set(LOWTIDE_DEFINE_plain)
set(LOWTIDE_DEFINE_tsan LT_EMU_TSAN=1)
set(LOWTIDE_DEFINE_asan LT_EMU_ASAN=1)
foreach(flavour plain tsan asan)
  add_library(lowtide_emu_${flavour} STATIC
    ${LOWTIDE_EMU}/runtime/fiber.cc ${LOWTIDE_EMU}/runtime/machine.cc ${LOWTIDE_EMU}/runtime/memory.cc
    ${LOWTIDE_EMU}/runtime/profile.cc ${LOWTIDE_EMU}/runtime/sync.cc
    ${LOWTIDE_EMU}/fakecudart/api.cc ${LOWTIDE_EMU}/fakecudart/launch.cc)
  target_include_directories(lowtide_emu_${flavour} PUBLIC ${LOWTIDE_EMU}/runtime)
  target_include_directories(lowtide_emu_${flavour} SYSTEM PUBLIC ${LOWTIDE_CUDA_HOME}/include)
  target_link_libraries(lowtide_emu_${flavour} PRIVATE lowtide_flags)
  target_compile_definitions(lowtide_emu_${flavour} PUBLIC ${LOWTIDE_DEFINE_${flavour}})
  target_compile_options(lowtide_emu_${flavour} PRIVATE -O2 -g1)
endforeach()

# lowtide_ptx(variable source flags...): C++ of the PTX of a .cu, one file per architecture in variable_<arch>.
function(lowtide_ptx variable source)
  file(RELATIVE_PATH _name ${PROJECT_SOURCE_DIR} ${source})
  string(REGEX REPLACE "[/.]" "_" _name ${_name})
  foreach(arch ${LOWTIDE_PTX_ARCHS})
    set(_ptx ${CMAKE_BINARY_DIR}/cuda/${_name}_${arch}.ptx)
    lowtide_nvcc(${_ptx} ${source} ${_ptx}.txt ${ARGN} -arch=compute_${arch} -ptx)
    add_custom_command(OUTPUT ${_ptx}.cc
      COMMAND ${Python3_EXECUTABLE} ${LOWTIDE_EMU}/ptx2cpp ${_ptx} -o ${_ptx}.cc
      DEPENDS ${_ptx} ${LOWTIDE_PTX2CPP} COMMENT "ptx2cpp ${_name} compute_${arch}" VERBATIM)
    # Alignment and null are the emulator's own checks; compiling the sanitizer's takes most of a minute a file.
    set_source_files_properties(${_ptx}.cc PROPERTIES
      COMPILE_OPTIONS "-O2;-g1;-fno-sanitize=alignment,null,object-size,vptr;-fno-strict-aliasing;-Wno-unused-but-set-variable;-Wno-unused-label;-Wno-unused-variable")
    set(${variable}_${arch} ${_ptx}.cc PARENT_SCOPE)
  endforeach()
endfunction()

# lowtide_cuda_program(name flavour stem sources...): a test program on the emulator.
function(lowtide_cuda_program name flavour stem)
  add_executable(${name} $<TARGET_OBJECTS:cuda_${stem}_test> ${ARGN})
  target_compile_options(${name} PRIVATE ${LOWTIDE_SANITIZE_${flavour}} -fno-omit-frame-pointer)
  target_link_options(${name} PRIVATE ${LOWTIDE_SANITIZE_${flavour}})
  target_link_libraries(${name} PRIVATE lowtide lowtide_cuda lowtide_emu_${flavour} GTest::gtest_main)
endfunction()

set(LOWTIDE_SANITIZER_ENV "TSAN_OPTIONS=halt_on_error=1" "ASAN_OPTIONS=detect_stack_use_after_return=0")

# Shared sources (base/*.cu) ride along with every stem, compiled once per flavour.
lowtide_ptx(_base ${PROJECT_SOURCE_DIR}/csrc/base/reduce.cu)
foreach(flavour plain tsan asan)
  set(_sources ${_base_80})
  if(flavour STREQUAL plain)
    list(APPEND _sources ${_base_100})
  endif()
  add_library(lowtide_cuda_base_${flavour} OBJECT ${_sources})
  target_compile_options(lowtide_cuda_base_${flavour} PRIVATE ${LOWTIDE_SANITIZE_${flavour}} -fno-omit-frame-pointer)
  target_link_libraries(lowtide_cuda_base_${flavour} PRIVATE lowtide_flags lowtide_emu_${flavour})
endforeach()

foreach(kernel ${LOWTIDE_CUDA_STEMS})
  if(kernel MATCHES "^base/")
    continue()
  endif()
  cmake_path(GET kernel FILENAME stem)
  # The host side of a test is compiled once: instrumenting it costs more than all kernels and tests nothing of them.
  add_library(cuda_${stem}_test OBJECT ${PROJECT_SOURCE_DIR}/tests/cuda/${kernel}_test.cc)
  target_include_directories(cuda_${stem}_test PRIVATE ${PROJECT_SOURCE_DIR}/tests/cuda ${PROJECT_SOURCE_DIR}/tests/cpp)
  target_include_directories(cuda_${stem}_test SYSTEM PRIVATE ${LOWTIDE_CUDA_HOME}/include)
  target_compile_options(cuda_${stem}_test PRIVATE -O1)
  target_link_libraries(cuda_${stem}_test PRIVATE lowtide GTest::gtest_main)
  lowtide_ptx(_kernel ${PROJECT_SOURCE_DIR}/csrc/${kernel}.cu)
  lowtide_cuda_program(cuda_${stem} plain ${stem} ${_kernel_80} ${_kernel_100} $<TARGET_OBJECTS:lowtide_cuda_base_plain>)
  foreach(arch ${LOWTIDE_PTX_ARCHS})
    foreach(order forward reverse random)
      add_test(NAME cuda.${stem}.${order}.compute_${arch} COMMAND cuda_${stem})
      set_tests_properties(cuda.${stem}.${order}.compute_${arch} PROPERTIES
        ENVIRONMENT "LT_EMU_ORDER=${order};LT_EMU_ARCH=${arch}" LABELS cuda)
    endforeach()
  endforeach()
  foreach(flavour tsan asan)
    lowtide_cuda_program(cuda_${stem}_${flavour} ${flavour} ${stem} ${_kernel_80}
      $<TARGET_OBJECTS:lowtide_cuda_base_${flavour}>)
    add_test(NAME cuda.${stem}.${flavour} COMMAND cuda_${stem}_${flavour})
    set_tests_properties(cuda.${stem}.${flavour} PROPERTIES ENVIRONMENT "LT_EMU_ORDER=random;LT_CUDA_SIZES=small;${LOWTIDE_SANITIZER_ENV}" LABELS cuda)
  endforeach()
endforeach()

# The net itself: kernels and host code with seeded bugs, which the builds together must catch.
set(_bugs ${PROJECT_SOURCE_DIR}/tests/cuda/seeded/bugs.cu)
lowtide_nvcc(${CMAKE_BINARY_DIR}/cuda/seeded_bugs.o ${_bugs} ${CMAKE_BINARY_DIR}/cuda/seeded_bugs.txt
  -I${PROJECT_SOURCE_DIR}/tests/cuda -arch=compute_80 -code=compute_80 -c)
set_source_files_properties(${CMAKE_BINARY_DIR}/cuda/seeded_bugs.o PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
lowtide_ptx(_seeded ${_bugs} -I${PROJECT_SOURCE_DIR}/tests/cuda)
foreach(flavour plain tsan asan)
  add_executable(cuda_seeded_${flavour} tests/cuda/seeded/main.cc ${CMAKE_BINARY_DIR}/cuda/seeded_bugs.o ${_seeded_80})
  target_include_directories(cuda_seeded_${flavour} PRIVATE ${PROJECT_SOURCE_DIR}/tests/cuda)
  target_compile_options(cuda_seeded_${flavour} PRIVATE ${LOWTIDE_SANITIZE_${flavour}} -fno-omit-frame-pointer)
  target_link_options(cuda_seeded_${flavour} PRIVATE ${LOWTIDE_SANITIZE_${flavour}})
  target_link_libraries(cuda_seeded_${flavour} PRIVATE lowtide_flags lowtide_emu_${flavour})
endforeach()
add_test(NAME cuda.seeded_bugs COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/cuda/seeded/check_net.py
  plain=$<TARGET_FILE:cuda_seeded_plain> tsan=$<TARGET_FILE:cuda_seeded_tsan> asan=$<TARGET_FILE:cuda_seeded_asan>)
set_tests_properties(cuda.seeded_bugs PROPERTIES LABELS cuda)
