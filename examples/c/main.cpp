// The same in C++17, with a model that owns its workspace:
//
//   c++ -std=c++17 -Idigits main.cpp digits/digits.o -o classify
#include <array>
#include <cstdio>
#include <fstream>

#include "digits.hpp"

int main(int count, char **words) {
    alignas(DIGITS_ALIGN) std::array<float, DIGITS_INPUT_IMAGE_ELEMENTS> image;
    alignas(DIGITS_ALIGN) std::array<float, DIGITS_OUTPUT_SCORES_ELEMENTS> scores;
    std::ifstream file(count == 2 ? words[1] : "", std::ios::binary);
    if (!file.read(reinterpret_cast<char *>(image.data()), sizeof image)) {
        std::fputs("usage: classify FILE, of 64 floats\n", stderr);
        return 2;
    }
    digits::Model model;
    model.run({image.data()}, {scores.data()});
    for (int i = 0; i < DIGITS_OUTPUT_SCORES_ELEMENTS; i++)
        std::printf("%d %a\n", i, static_cast<double>(scores[i]));
    return 0;
}
