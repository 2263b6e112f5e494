# SPDX-License-Identifier: Apache-2.0
# The core library: plain C++20, no Python, no torch, no OpenMP.
include_guard()

# The numeric contract of every translation unit. -fno-fast-math stays first: placed after
# -fno-math-errno it would turn errno back on and keep square roots from being vectorised.
add_library(lowtide_flags INTERFACE)
target_compile_options(lowtide_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-fno-fast-math -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra>)
if(LOWTIDE_WERROR)
  target_compile_options(lowtide_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(LOWTIDE_SANITIZE)
  string(REPLACE ";" "," _san "${LOWTIDE_SANITIZE}")
  target_compile_options(lowtide_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${_san} -fno-omit-frame-pointer -g1 -fno-sanitize-recover=undefined>)
  target_link_options(lowtide_flags INTERFACE -fsanitize=${_san})
endif()

set(LOWTIDE_ISAS)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(LOWTIDE_ISAS baseline avx2 avx512)
  set(LOWTIDE_FLAGS_baseline -march=x86-64)
  set(LOWTIDE_FLAGS_avx2 -march=x86-64-v3)
  # gcc 12 warns about the undefined pass-through operands of its own AVX-512 headers.
  set(LOWTIDE_FLAGS_avx512 -march=x86-64-v4 -mprefer-vector-width=512 -Wno-maybe-uninitialized -Wno-uninitialized)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(LOWTIDE_ISAS neon)
  set(LOWTIDE_FLAGS_neon)
endif()

function(lowtide_library)
  find_package(Threads REQUIRED)
  add_library(lowtide STATIC csrc/base/crc32c.cc csrc/base/isa.cc csrc/base/parallel.cc)
  target_include_directories(lowtide PUBLIC ${PROJECT_SOURCE_DIR}/csrc)
  target_link_libraries(lowtide PUBLIC lowtide_flags Threads::Threads)
  foreach(isa ${LOWTIDE_ISAS})
    # -O3 also in debug builds: at -O0 a kernel is a hundred times slower and tests nothing else. Sanitized,
    # -O3 takes three times as long to compile as -O1.
    add_library(lowtide_${isa} OBJECT)
    target_include_directories(lowtide_${isa} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
    target_compile_definitions(lowtide_${isa} PRIVATE LT_ISA=${isa})
    target_compile_options(lowtide_${isa} PRIVATE $<IF:$<BOOL:${LOWTIDE_SANITIZE}>,-O1,-O3> ${LOWTIDE_FLAGS_${isa}} -Wno-psabi)
    target_link_libraries(lowtide_${isa} PRIVATE lowtide_flags)
    target_sources(lowtide PRIVATE $<TARGET_OBJECTS:lowtide_${isa}>)
  endforeach()
endfunction()

# lowtide_kernel(family stem): <stem>.cc (seam), <stem>_ref.cc (scalar), <stem>_simd.cc (once per ISA),
# tests/cpp/<family>/<stem>_test.cc, bench/cpp/<stem>_bench.cc, <stem>.cu.
function(lowtide_kernel family stem)
  set(dir ${PROJECT_SOURCE_DIR}/csrc/${family})
  target_sources(lowtide PRIVATE ${dir}/${stem}.cc ${dir}/${stem}_ref.cc)
  # The oracle is compiled as written: what the vectoriser does to it would be one more thing to trust.
  set_source_files_properties(${dir}/${stem}_ref.cc PROPERTIES COMPILE_OPTIONS
    "-O2;-fno-tree-vectorize;-fno-tree-slp-vectorize")
  foreach(isa ${LOWTIDE_ISAS})
    target_sources(lowtide_${isa} PRIVATE ${dir}/${stem}_simd.cc)
  endforeach()
  set_property(GLOBAL APPEND PROPERTY LOWTIDE_KERNELS ${family}/${stem})
endfunction()

# lowtide_algorithm(family stem...): <stem>.cc, written on kernels and the same for every ISA, and
# tests/cpp/<family>/<stem>_test.cc.
function(lowtide_algorithm family)
  foreach(stem ${ARGN})
    target_sources(lowtide PRIVATE ${PROJECT_SOURCE_DIR}/csrc/${family}/${stem}.cc)
    set_property(GLOBAL APPEND PROPERTY LOWTIDE_ALGORITHMS ${family}/${stem})
  endforeach()
endfunction()
