// The sums of a register tile as copies, to be read after the last add_products.
//
// Read where they are, gcc would not keep them in registers until then. A level's header includes this after its Floats.

#pragma once

template <int M, int J>
struct CompleteSums {
    Floats rows[M][J];
    const Floats *operator[](int m) const { return rows[m]; }
};
template <int M, int J>
INLINE CompleteSums<M, J> copied_sums(const Floats (&sums)[M][J]) {
    CompleteSums<M, J> copy;
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < J; ++j) copy.rows[m][j] = sums[m][j];
    return copy;
}
