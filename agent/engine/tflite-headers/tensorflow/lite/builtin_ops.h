/* tflitec's build script wants this file; the declarations are in lite/c/c_api.h. */
