# SPDX-License-Identifier: Apache-2.0
# A weak symbol in an object built for a wide ISA may be chosen by the linker for baseline code: SIGILL
# on old processors. Fails if any leaves an ISA object.
foreach(object ${OBJECTS})
  execute_process(COMMAND ${NM} -C --defined-only ${object} OUTPUT_VARIABLE out RESULT_VARIABLE rc)
  if(rc)
    message(FATAL_ERROR "nm failed on ${object}")
  endif()
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" weak "${out}")
  # Data, not code: the sanitizers' own, and the pointer to the C++ personality routine that they need.
  list(FILTER weak EXCLUDE REGEX "asan|tsan|ubsan| V DW\\.ref\\.")
  if(weak)
    message(FATAL_ERROR "weak symbols in ${object}: ${weak}")
  endif()
endforeach()
