/* Declarations of the XNNPACK delegate's C API, as far as the `tflitec` crate calls it. */
#ifndef LIMPET_TFLITE_XNNPACK_DELEGATE_H_
#define LIMPET_TFLITE_XNNPACK_DELEGATE_H_

#include "tensorflow/lite/c/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Passed and returned by value, with a size that differs between versions of the library (32 bytes in 2.17.1):
 * the tail is larger than any of them, and only the first field is touched. */
typedef struct TfLiteXNNPackDelegateOptions {
  int num_threads;
  unsigned int opaque[63];
} TfLiteXNNPackDelegateOptions;

TfLiteXNNPackDelegateOptions TfLiteXNNPackDelegateOptionsDefault(void);
TfLiteDelegate* TfLiteXNNPackDelegateCreate(const TfLiteXNNPackDelegateOptions* options);
void TfLiteXNNPackDelegateDelete(TfLiteDelegate* delegate);

#ifdef __cplusplus
}
#endif

#endif
