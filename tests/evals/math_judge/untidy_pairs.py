r"""Answers as models write them, beside the gold answer: ``= | gold | answer`` or ``! | gold | answer``."""

from __future__ import annotations

UNTIDY = r"""
= | \frac{1}{2} | $\boxed{\dfrac 1 2}$
= | 5 | \mathbf{\boxed{5}}
= | 5 | \underline{\underline{5}}
= | 5 | \textcolor{red}{5}
= | 5 | {\color{red} 5}
= | 5 | \therefore x=5 \quad\blacksquare
= | 5 | 5 ✅
= | 5 | \boxed{5}\ \checkmark
= | 1000 | 1\text{,}000
! | 1,2 | 1\text{,}2{,}3
= | (0,1] | ]0,1]
= | [0,1) | \left[0,1\right[
= | (0,1) | x \in \left]0 ; 1\right[
= | (-\infty,0)\cup(2,\infty) | ]-\infty,0[ \cup ]2,+\infty[
! | [0,1] | ]0,1]
! | [0,1) | [0,1]
= | [1,2],[3,4] | [3,4], [1,2]
! | [1,2],[3,4] | [1,2)
= | (-\infty,0)\cup(0,\infty) | \mathbb{R} - \{0\}
! | (-\infty,0)\cup(0,\infty) | \mathbb{R} - \{1\}
= | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix}1&2\cr3&4\end{bmatrix}
= | \begin{pmatrix}1\\2\end{pmatrix} | [[1],[2]]
! | \begin{pmatrix}1\\2\end{pmatrix} | [[1,2]]
! | \begin{pmatrix}1\\2\end{pmatrix} | [[2],[1]]
= | \text{(B)} | Option B
= | \text{(B)} | choice (B).
= | \text{(B)} | The answer is B
= | \text{(B)} | The correct option is (B)
! | \text{(B)} | The answer is not B
! | \text{(B)} | Option C
= | \text{Monday} | The answer is Monday.
! | \text{Monday} | The answer is not Monday
= | \text{Monday} | 'Monday'
= | \text{No} | no
! | \text{No} | on
! | \text{No} | yes
= | A, C, E | \text{A, C, and E}
= | A, C, E | \text{(E), (A) and (C)}
! | A, C, E | \text{A and C}
= | 12\text{ km/h} | 12 \frac{\text{km}}{\text{h}}
! | 12\text{ km/h} | 12 \frac{\text{m}}{\text{h}}
= | 12\text{ m/s} | 12\ \mathrm{m\,s^{-1}}
! | 12\text{ m/s} | 12\ \mathrm{m\,s^{-2}}
= | 101_2 | 101 base 2
= | 101_2 | 101_{\text{base }2}
= | 101_2 | 101 \text{ (base 2)}
= | 101_2 | 101 in base two
! | 101_2 | 101 \text{ (base 3)}
! | 101_2 | 5
= | 3:4 | 3 to 4
= | 3:4 | 3 \text{ to } 4
! | 3:4 | 4 to 3
! | 3:4 | 3/4
= | 2<x<5 | x>2 and x<5
= | 2\le x<5 | x < 5 \text{ and } x \ge 2
! | 2<x<5 | x>2 or x<5
! | 2<x<5 | x>2 and y<5
! | 2<x<5 | x\ge2 and x<5
! | (2,5) | x<2 and x>5
= | \text{10:30 AM} | 10:30 a.m.
! | \text{10:30 AM} | 10:30 p.m.
= | ABC | \triangle ABC
= | ABC | \angle ABC
! | ABC | \triangle ABD
"""


COMMON = r"""
= | \frac12 | \frac 12
= | \frac12 | \cfrac{1}{2}
= | 5 | $5
= | 5 | \[ x = 5 \]
= | 5\% | $5\%$
! | 5\% | 0.5
= | (1,2) | (x, y)=(1, 2)
! | (1,2) | (x,y)=(2,1)
= | 1,2 | x_1=1, x_2=2
= | 1,2 | x\in\{1,2\}
= | \{1,2\} | \left\{ 2, 1 \right\}
= | (0,1] | 0 \lt x \le 1
= | \infty | ∞
= | 60^\circ | \angle ABC = 60^\circ
! | 60^\circ | 60'
= | -4\frac{1}{2} | -\frac92
= | \pm 2 | 2 \text{ or } -2
! | \pm 2 | 2
= | \sqrt{2} | √(2)
= | 2\sqrt{3} | 2*sqrt(3)
! | 2\sqrt{3} | 3.464
= | y=2x+1 | 2x+1
= | 2x+1 | f(x) = 2x + 1
! | y=2x+1 | x=2y+1
= | 1.5\times10^{-3} | 1.5*10**(-3)
= | 7 | The final answer is $7$.
= | 7 | n=\boxed{7}
= | \$1{,}234.50 | $1,234.50
= | 3 | \left| -3 \right|
! | \left(\frac{3}{5},\frac{8}{3}\right) | (0.6, 2.667)
"""
"""Forms that were read from the first try."""
