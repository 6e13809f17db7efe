/* An exported model in plain C: no allocation, no library.
 *
 *   qcompiler export --format c digits.onnx --precision int8 --calibration images.npz \
 *       --input-shape image=1x1x8x8 -o digits
 *   cc -std=c11 -Idigits main.c digits/digits.o -o classify
 *   ./classify image.bin          # 64 floats -> 10 scores
 */
#include <stdio.h>

#include "digits.h"

_Alignas(DIGITS_ALIGN) static float image[DIGITS_INPUT_IMAGE_ELEMENTS];
_Alignas(DIGITS_ALIGN) static float scores[DIGITS_OUTPUT_SCORES_ELEMENTS];
_Alignas(DIGITS_WORKSPACE_ALIGN) static unsigned char workspace[DIGITS_WORKSPACE_BYTES];

int main(int count, char **words) {
    const struct digits_inputs inputs = {image};
    const struct digits_outputs outputs = {scores};
    FILE *file = count == 2 ? fopen(words[1], "rb") : NULL;
    if (!file || fread(image, sizeof image[0], DIGITS_INPUT_IMAGE_ELEMENTS, file) !=
                     DIGITS_INPUT_IMAGE_ELEMENTS) {
        fputs("usage: classify FILE, of 64 floats\n", stderr);
        return 2;
    }
    fclose(file);
    int status = digits_run(&inputs, &outputs, workspace);
    if (status != DIGITS_OK) {
        fprintf(stderr, "digits_run: status %d, see digits.h\n", status);
        return 1;
    }
    for (int i = 0; i < DIGITS_OUTPUT_SCORES_ELEMENTS; i++)
        printf("%d %a\n", i, (double)scores[i]);
    return 0;
}
