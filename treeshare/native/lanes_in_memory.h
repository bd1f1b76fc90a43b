// What vectors of sixteen lanes do through memory where a level has no instruction for it. A level's header includes it
// after its Floats and Mask, `store` and `bits`.

#pragma once

// Store the lanes of a mask side by side; returns how many.
INLINE int compress(float *target, Mask mask, Floats x) {
    alignas(64) float values[16];
    store(values, x);
    int count = 0;
    for (int left = bits(mask); left; left &= left - 1) target[count++] = values[__builtin_ctz(left)];
    return count;
}
