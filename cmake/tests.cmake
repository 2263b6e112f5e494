# SPDX-License-Identifier: Apache-2.0
enable_testing()
include(GoogleTest)
if(LOWTIDE_GTEST_SOURCE)  # cross builds: compile GoogleTest from Debian's sources
  add_subdirectory(${LOWTIDE_GTEST_SOURCE} ${CMAKE_BINARY_DIR}/googletest EXCLUDE_FROM_ALL)
  if(NOT TARGET GTest::gtest_main)
    add_library(GTest::gtest_main ALIAS gtest_main)
  endif()
else()
  find_package(GTest REQUIRED)
endif()

add_executable(lowtide_tests tests/cpp/base/base_test.cc tests/cpp/base/crc32c_test.cc
  tests/cpp/quant/dynamic_map_test.cc)
target_include_directories(lowtide_tests PRIVATE ${PROJECT_SOURCE_DIR}/tests/cpp)
target_link_libraries(lowtide_tests PRIVATE lowtide GTest::gtest_main)
target_compile_options(lowtide_tests PRIVATE -Wno-psabi)
get_property(_kernels GLOBAL PROPERTY LOWTIDE_KERNELS)
get_property(_algorithms GLOBAL PROPERTY LOWTIDE_ALGORITHMS)
foreach(kernel ${_kernels} ${_algorithms})
  target_sources(lowtide_tests PRIVATE tests/cpp/${kernel}_test.cc)
endforeach()
gtest_discover_tests(lowtide_tests DISCOVERY_TIMEOUT 120)

foreach(isa ${LOWTIDE_ISAS})
  add_test(NAME no_weak_symbols.${isa} COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM}
    "-DOBJECTS=$<TARGET_OBJECTS:lowtide_${isa}>" -P ${PROJECT_SOURCE_DIR}/cmake/no_weak_symbols.cmake)
endforeach()
