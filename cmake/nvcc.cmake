# SPDX-License-Identifier: Apache-2.0
# Runs a command, keeps its output (ptxas -v) in a file and shows it only when the command fails.
# usage: cmake -DLOG=FILE -P nvcc.cmake -- COMMAND...
set(command)
set(past FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(past)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif(CMAKE_ARGV${i} STREQUAL "--")
    set(past TRUE)
  endif()
endforeach()
execute_process(COMMAND ${command} RESULT_VARIABLE rc OUTPUT_VARIABLE out ERROR_VARIABLE out)
file(WRITE ${LOG} "${out}")
if(rc)
  string(REGEX REPLACE "ptxas info[^\n]*\n" "" out "${out}")
  message(FATAL_ERROR "nvcc failed:\n${out}")
endif()
