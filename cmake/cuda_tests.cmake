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

# Translated kernels as objects: name_<flavour>, the newer PTX in the plain one only.
function(lowtide_ptx_objects name cu)
  lowtide_ptx(_ptx ${cu} ${ARGN})
  foreach(flavour plain tsan asan)
    add_library(${name}_${flavour} OBJECT ${_ptx_80})
    if(flavour STREQUAL plain)
      target_sources(${name}_${flavour} PRIVATE ${_ptx_100})
    endif()
    target_compile_options(${name}_${flavour} PRIVATE ${LOWTIDE_SANITIZE_${flavour}} -fno-omit-frame-pointer)
    target_link_libraries(${name}_${flavour} PRIVATE lowtide_flags lowtide_emu_${flavour})
  endforeach()
endfunction()

# lowtide_cuda_program(name flavour objects...): links host objects and translated kernels to the emulator.
function(lowtide_cuda_program name flavour)
  add_executable(${name})
  foreach(objects ${ARGN})
    target_sources(${name} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_options(${name} PRIVATE ${LOWTIDE_SANITIZE_${flavour}})
  target_link_libraries(${name} PRIVATE lowtide lowtide_cuda lowtide_emu_${flavour})
endfunction()

# The host side of a program is compiled once: instrumenting it costs more than all kernels and tests nothing of them.
function(lowtide_cuda_host name source)
  add_library(${name} OBJECT ${source})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/cuda ${PROJECT_SOURCE_DIR}/tests/cpp)
  target_include_directories(${name} SYSTEM PRIVATE ${LOWTIDE_CUDA_HOME}/include)
  target_compile_definitions(${name} PRIVATE LT_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
  target_compile_options(${name} PRIVATE -O1)
  target_link_libraries(${name} PRIVATE lowtide GTest::gtest_main)
endfunction()

function(lowtide_cuda_ctest name environment)
  add_test(NAME ${name} COMMAND ${ARGN})
  set_tests_properties(${name} PROPERTIES LABELS cuda ENVIRONMENT "${environment}")
endfunction()

set(LOWTIDE_SANITIZER_ENV "TSAN_OPTIONS=halt_on_error=1" "ASAN_OPTIONS=detect_stack_use_after_return=0")

# base/*.cu rides along with every stem.
lowtide_ptx_objects(cuda_base_kernels ${PROJECT_SOURCE_DIR}/csrc/base/reduce.cu)
set(_all_kernels cuda_base_kernels_plain)
foreach(kernel ${LOWTIDE_CUDA_STEMS})
  if(kernel MATCHES "^base/")
    continue()
  endif()
  cmake_path(GET kernel FILENAME stem)
  lowtide_ptx_objects(cuda_${stem}_kernels ${PROJECT_SOURCE_DIR}/csrc/${kernel}.cu)
  list(APPEND _all_kernels cuda_${stem}_kernels_plain)
  lowtide_cuda_host(cuda_${stem}_test ${PROJECT_SOURCE_DIR}/tests/cuda/${kernel}_test.cc)
  foreach(flavour plain tsan asan)
    lowtide_cuda_program(cuda_${stem}_${flavour} ${flavour} cuda_${stem}_test cuda_${stem}_kernels_${flavour}
      cuda_base_kernels_${flavour})
    target_link_libraries(cuda_${stem}_${flavour} PRIVATE GTest::gtest_main)
  endforeach()
  foreach(arch ${LOWTIDE_PTX_ARCHS})
    foreach(order forward reverse random)
      lowtide_cuda_ctest(cuda.${stem}.${order}.compute_${arch} "LT_EMU_ORDER=${order};LT_EMU_ARCH=${arch}"
        cuda_${stem}_plain)
    endforeach()
  endforeach()
  foreach(flavour tsan asan)
    lowtide_cuda_ctest(cuda.${stem}.${flavour} "LT_EMU_ORDER=random;LT_CUDA_SIZES=small;${LOWTIDE_SANITIZER_ENV}"
      cuda_${stem}_${flavour})
  endforeach()
endforeach()

# Bytes moved over bytes that must move, kernel by kernel.
lowtide_cuda_host(cuda_traffic_main ${PROJECT_SOURCE_DIR}/tests/cuda/traffic/main.cc)
lowtide_cuda_program(cuda_traffic plain cuda_traffic_main ${_all_kernels})
lowtide_cuda_ctest(cuda.traffic "" ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/cuda/traffic/check_traffic.py
  $<TARGET_FILE:cuda_traffic> ${CMAKE_BINARY_DIR}/traffic.json)

# The net itself: kernels and host code with seeded bugs, which the builds together must catch.
set(_bugs ${PROJECT_SOURCE_DIR}/tests/cuda/seeded/bugs.cu)
set(_bugs_object ${CMAKE_BINARY_DIR}/cuda/seeded_bugs.o)
lowtide_nvcc(${_bugs_object} ${_bugs} ${_bugs_object}.txt -I${PROJECT_SOURCE_DIR}/tests/cuda -arch=compute_80
  -code=compute_80 -c)
set_source_files_properties(${_bugs_object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
lowtide_ptx_objects(cuda_seeded_kernels ${_bugs} -I${PROJECT_SOURCE_DIR}/tests/cuda)
lowtide_cuda_host(cuda_seeded_main ${PROJECT_SOURCE_DIR}/tests/cuda/seeded/main.cc)
set(_programs)
foreach(flavour plain tsan asan)
  lowtide_cuda_program(cuda_seeded_${flavour} ${flavour} cuda_seeded_main cuda_seeded_kernels_${flavour})
  target_sources(cuda_seeded_${flavour} PRIVATE ${_bugs_object})
  list(APPEND _programs ${flavour}=$<TARGET_FILE:cuda_seeded_${flavour}>)
endforeach()
lowtide_cuda_ctest(cuda.seeded_bugs "" ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/cuda/seeded/check_net.py ${_programs})

# What is known without running anything: registers, spills, occupancy, vector accesses, against budgets.
set(_ptx_files)
foreach(kernel ${LOWTIDE_CUDA_STEMS})
  string(REPLACE "/" "_" _name ${kernel})
  list(APPEND _ptx_files ${CMAKE_BINARY_DIR}/cuda/csrc_${_name}_cu_80.ptx)
endforeach()
lowtide_cuda_ctest(cuda.static_report "" ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/cuda/static_report.py
  --budgets ${PROJECT_SOURCE_DIR}/tests/cuda/budgets.json --output ${CMAKE_BINARY_DIR}/static_report.json
  --ptx ${_ptx_files} --ptxas ${LOWTIDE_CUDA_LOGS})
