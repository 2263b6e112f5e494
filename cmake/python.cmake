# SPDX-License-Identifier: Apache-2.0
# The two Python-facing modules: _core (pybind11: NumPy, ISA control) and _ops (torch, stable ABI).
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)

if(LOWTIDE_PYTHON)
  find_package(pybind11 3 CONFIG REQUIRED)
  file(GLOB _core_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/pybind/*.cc)
  # Without pybind11's LTO: the module is thin and linking took longer than compiling.
  pybind11_add_module(_core MODULE NO_EXTRAS ${_core_sources})
  target_link_libraries(_core PRIVATE lowtide)
  target_compile_definitions(_core PRIVATE LOWTIDE_VERSION="${PROJECT_VERSION}"
    LOWTIDE_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
    LOWTIDE_BUILD_TYPE="${CMAKE_BUILD_TYPE}")
  install(TARGETS _core DESTINATION lowtide COMPONENT python)
endif()

if(LOWTIDE_TORCH)
  if(NOT LOWTIDE_TORCH_DIR)  # located without importing torch: works in isolated builds too
    execute_process(COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE LOWTIDE_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
  if(NOT LOWTIDE_TORCH_DIR)
    message(FATAL_ERROR "LOWTIDE_TORCH=ON needs torch's headers: pip install 'torch>=2.10', or build with LOWTIDE_TORCH=OFF")
  endif()
  add_library(lowtide_torch_headers INTERFACE)
  target_include_directories(lowtide_torch_headers SYSTEM INTERFACE ${LOWTIDE_TORCH_DIR}/include)
  # The oldest libtorch that the binary loads in. str arguments and float/int32_t parameters are unusable
  # in this ABI (leak; silently wrong): csrc/torch/common.h refuses them at compile time.
  target_compile_definitions(lowtide_torch_headers INTERFACE TORCH_TARGET_VERSION=0x020a000000000000ULL)
  # Only the name is needed: Python loads torch RTLD_LOCAL, so symbols resolve through DT_NEEDED.
  target_link_options(lowtide_torch_headers INTERFACE -Wl,--no-as-needed)
  target_link_libraries(lowtide_torch_headers INTERFACE ${LOWTIDE_TORCH_DIR}/lib/libtorch.so)

  # An importable abi3 module whose static initialisers register the ops.
  function(lowtide_torch_module name)
    add_library(${name} MODULE ${ARGN} ${PROJECT_SOURCE_DIR}/csrc/torch/init.c)
    target_compile_definitions(${name} PRIVATE Py_LIMITED_API=0x030A0000 LOWTIDE_MODULE=${name})
    target_include_directories(${name} SYSTEM PRIVATE ${Python_INCLUDE_DIRS})
    target_link_libraries(${name} PRIVATE lowtide lowtide_torch_headers)
    set_target_properties(${name} PROPERTIES PREFIX "" SUFFIX ".abi3.so" SKIP_BUILD_RPATH ON)
    install(TARGETS ${name} DESTINATION lowtide COMPONENT python)
  endfunction()
  file(GLOB _ops_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/torch/*_ops.cc)
  lowtide_torch_module(_ops ${_ops_sources})
endif()
