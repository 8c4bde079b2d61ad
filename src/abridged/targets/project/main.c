/* Runs the network once, on a ramp, and prints every output. */
#include <stdio.h>
#include "model.h"

@BUFFERS@

int main(void) {
  const float *inputs[] = {@INPUTS@};
  float *outputs[] = {@OUTPUTS@};
@WEIGHTS@
@RAMPS@
  model_prepare(arena);
  model_run(inputs, outputs, weights, arena, 0, 0);
@PRINTS@
  return 0;
}
