/* SPDX-License-Identifier: Apache-2.0
 * An empty abi3 module: importing it runs the static initialisers that register the ops. */
#include <Python.h>

#define LT_STR_(x) #x
#define LT_STR(x) LT_STR_(x)
#define LT_CAT_(a, b) a##b
#define LT_CAT(a, b) LT_CAT_(a, b)

static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT, LT_STR(LOWTIDE_MODULE), 0, 0, 0, 0, 0, 0, 0};

PyMODINIT_FUNC LT_CAT(PyInit_, LOWTIDE_MODULE)(void) { return PyModuleDef_Init(&def); }
