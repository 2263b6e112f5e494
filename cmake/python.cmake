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
  include(${PROJECT_SOURCE_DIR}/cmake/torch.cmake)
  if(NOT LOWTIDE_TORCH_DIR)
    message(FATAL_ERROR "LOWTIDE_TORCH=ON needs torch's headers: pip install 'torch>=2.10', or build with LOWTIDE_TORCH=OFF")
  endif()
  lowtide_torch_headers(lowtide_torch_headers 0x020a000000000000ULL)
  file(GLOB _ops_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/torch/*_ops.cc)
  lowtide_torch_module(_ops lowtide_torch_headers ${_ops_sources})
  install(TARGETS _ops DESTINATION lowtide COMPONENT python)
endif()
