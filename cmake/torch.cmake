# SPDX-License-Identifier: Apache-2.0
# Modules of torch ops: abi3 modules whose static initialisers register ops on LibTorch's stable ABI.
include_guard()
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)

if(NOT LOWTIDE_TORCH_DIR)  # located without importing torch: works in isolated builds too
  execute_process(COMMAND ${Python_EXECUTABLE} -c
    "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE LOWTIDE_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()

# lowtide_torch_headers(name version): what compiles and links against libtorch. The version is the oldest libtorch that
# the binary loads in. str arguments and float/int32_t parameters are unusable in this ABI (leak; silently wrong):
# csrc/torch/common.h refuses them at compile time.
function(lowtide_torch_headers name version)
  add_library(${name} INTERFACE)
  target_include_directories(${name} SYSTEM INTERFACE ${LOWTIDE_TORCH_DIR}/include)
  target_compile_definitions(${name} INTERFACE TORCH_TARGET_VERSION=${version})
  # Only the name is needed: Python loads torch RTLD_LOCAL, so symbols resolve through DT_NEEDED.
  target_link_options(${name} INTERFACE -Wl,--no-as-needed)
  target_link_libraries(${name} INTERFACE ${LOWTIDE_TORCH_DIR}/lib/libtorch.so)
endfunction()

function(lowtide_torch_module name headers)
  add_library(${name} MODULE ${ARGN} ${PROJECT_SOURCE_DIR}/csrc/torch/init.c)
  target_compile_definitions(${name} PRIVATE Py_LIMITED_API=0x030A0000 LOWTIDE_MODULE=${name})
  target_include_directories(${name} SYSTEM PRIVATE ${Python_INCLUDE_DIRS})
  target_link_libraries(${name} PRIVATE lowtide ${headers})
  set_target_properties(${name} PROPERTIES PREFIX "" SUFFIX ".abi3.so" SKIP_BUILD_RPATH ON)
endfunction()
