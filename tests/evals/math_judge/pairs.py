r"""Pairs of answers with what they are, equal or not: ``= | gold | answer`` or ``! | gold | answer``.

``{bar}`` stands for ``|``.
"""

from __future__ import annotations

PAIRS = r"""
= | \frac{1}{2} | \dfrac12
= | \frac9{19} | 9/19
= | .35625 | 0.35625
= | .35625 | \frac{57}{160}
= | 4\frac{2}{3} | \frac{14}{3}
= | 7 3/4 | 7.75
! | 4\frac{2}{3} | \frac{8}{3}
= | 0.\overline{3} | \frac13
= | 0.1\overline{6} | 1/6
! | \frac{1}{3} | 0.333
! | \frac{1}{3} | 0.333...
! | \frac{9}{7} | 1.285714285714
= | 1.5\times 10^6 | 1500000
= | 1.5e6 | 1{,}500{,}000
= | 3 \cdot 10^{-4} | 0.0003
= | 2^{-3} | 0.125
= | 2^10 | 1024
= | 5! | 120
= | \binom{5}{2} | 10
= | -\frac{1}{2} | \frac{1}{-2}
! | \frac{a}{b+c} | a/b+c
= | 3\sqrt{5} | \sqrt{45}
= | 2\sqrt{3} | 2√3
! | \sqrt{23} | \sqrt23
= | \frac{1}{\sqrt{2}} | \frac{\sqrt2}{2}
= | \sqrt[3]{8} | 2
= | i^2 | -1
= | \sqrt{-4} | 2i
= | 6-5i | -5i+6
! | \pi | 3.14159
! | \pi | \frac{22}{7}
! | 1/2^{99} | 1/2^{98}
! | 1/2^{9999} | 1/2^{9998}
= | 10^{10^{10}} | 10^{10000000000}
! | 9^{9^{9^9}} | 9^{9^{9^8}}
! | 100000! | 100001!
= | \$32{,}348 | 32348
= | \$5 | 5 dollars
= | $5 | 5 dollars
! | \$5 | 5 cents
! | \$5 | 5 euros
= | 11,\! 111,\! 111,\! 100 | 11111111100
! | 1,2 | 12
! | 1,2 | 1.2
= | 100, 200, 300 | 300,100,200
! | 1,1,2 | 1,2,2
= | 10\% | 10
= | 50\% | 0.5
! | 50\% | 5
! | 50\% | 0.05
= | 5\text{ cm} | 5
= | 5 cm | 5\,\mathrm{centimeters}
= | \text{5 cm} | 5
= | 12 \text{ in} | 12 inches
= | 5 | 5 m
! | 5\text{ cm} | 5\text{ m}
! | 5\text{ m} | 500\text{ cm}
! | 5\text{ cm}^2 | 5\text{ cm}
! | 5\text{ cm}^2 | 5\text{ cm}^3
= | 5\text{ square cm} | 5\text{ cm}^2
= | 50\text{ miles per hour} | 50 mph
= | 17\text{ apples} | 17
! | 17\text{ apples} | 17\text{ pears}
= | 90^\circ | 90
= | 90^{\circ} | 90 degrees
! | 90^\circ | \frac{\pi}{2}
! | 30^\circ | 30\text{ radians}
= | 2516_8 | 2516_{8}
= | 2516_8 | (2516)_8
= | 11_2 | 11_{\text{two}}
= | 11011_2 | 11011
! | 52_8 | 52_7
! | 11_2 | 3
! | 11_2 | 3_{10}
= | x=5 | 5
= | y=2x+3 | 2x+3=y
! | x=5 | y=5
= | AB=5 | 5
= | P(A)=\frac13 | 1/3
= | x = 2 + 3 = 5 | 5
= | 3x+2y=6 | 6x+4y=12
! | 3x+2y=6 | 6x+4y=13
= | y=2x+3 | 2x-y+3=0
! | y=2x+3 | 2x-y-3=0
= | x^2+y^2=1 | 1=y^2+x^2
! | 5x - 7y + 11z + 4 = 0 | 0
= | x=1, y=2 | y=2, x=1
! | x=1, y=2 | x=2, y=1
= | x=2\text{ or }x=-3 | -3, 2
= | (1,2) | \left( 1, 2 \right)
! | (1,2) | (2,1)
! | (1,2) | 1,2
! | [2,5) | [2,5]
! | (2,5) | \{2,5\}
= | x>3 | (3,\infty)
= | -2\le x\le 7 | [-2,7]
= | x \in [-2,7] | [-2,7]
= | 7 > x \ge 2 | [2, 7)
! | x<5 | x\le 5
= | x \le 2 \text{ or } x \ge 5 | (-\infty,2]\cup[5,\infty)
= | (-\infty,\infty) | \mathbb{R}
= | (-\infty,2)\cup(3,\infty) | (3,\infty)\cup(-\infty,2)
! | (-\infty,2)\cup(3,\infty) | (-\infty,2]\cup(3,\infty)
= | \{1,2,3\} | \{3,2,1\}
= | \{1,2,2\} | \{1,2\}
= | \{1,2\} | 1,2
= | \emptyset | \{\}
! | \{1,2,3\} | \{1,2\}
= | \{1\pm\sqrt5,-2\} | \{-2,1-\sqrt5,1+\sqrt5\}
= | \frac{-1\pm\sqrt{5}}{2} | \frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}
! | 1\pm\sqrt{2} | 1+\sqrt{2}
= | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}
= | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \left[\begin{array}{cc}1&2\\3&4\end{array}\right]
= | \begin{pmatrix}1&2\\3&4\end{pmatrix} | [[1,2],[3,4]]
! | \begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1&2\end{pmatrix}
! | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{vmatrix}1&2\\3&4\end{vmatrix}
= | \text{Evelyn} | evelyn
= | \text{(C)} | C
= | C | (C)
= | \text{June 5} | June 5
! | \text{June 5} | June 6
! | \text{even} | \text{odd}
! | \text{east} | \text{seat}
! | east | seat
= | 5 | **5**
= | 5 | $5$.
= | 5 | \boxed{5}
= | 5 | \(5\)
= | 2x^2y | y\cdot 2xx
= | x^{\frac12} | \sqrt{x}
= | \frac{\pi}{4}+2k\pi | 2\pi k+\pi/4
= | {bar}-3{bar} | 3
= | \lfloor 3.7 \rfloor | 3
! | 1 | -1
! | \infty | -\infty
! | \infty-\infty | 0
! | 1/0 | 1/0+1
! | p-q | q-p
= | {bar}x{bar}>1 | x<-1 \text{ or } x>1
= | {bar}x{bar}<2 | -2<x<2
= | {bar}x{bar}<2 | (-2,2)
! | {bar}x{bar}<2 | (-2,3)
= | {bar}x{bar} \ge 3 | x\le -3 \text{ or } x\ge 3
= | {bar}x{bar} \ge 3 | (-\infty,-3]\cup[3,\infty)
! | {bar}x{bar} \ge 3 | (-\infty,-3)\cup(3,\infty)
! | {bar}x{bar}>1 | x>1
= | {bar}x-1{bar}<2 | -1<x<3
! | {bar}x-1{bar}<2 | -2<x<2
= | \gcd(12,18) | 6
! | \gcd(12,18) | 3
= | 12 | \text{lcm}(4,6)
= | 12 | \operatorname{lcm}(4,6)
! | 12 | \operatorname{lcm}(4,8)
= | \max(3,5) | 5
! | \max(3,5) | 3
= | \min\{3,5\} | 3
= | 3 | 17 \bmod 7
! | 3 | 17 \bmod 5
= | 3 | 17 \mod 7
= | x \equiv 3 \pmod 7 | x\equiv 3\pmod{7}
= | 3 | 3 \pmod 7
= | 3 | 3 \pmod{7}
! | 3 | 4 \pmod{7}
= | \overline{AB} | AB
= | \overline{AB} | \overline{AB}
! | \overline{AB} | \overline{AC}
= | 0.\overline{142857} | \frac17
= | 0.\overline{142857} | 0.142857\overline{142857}
= | 1.2\overline{3} | \frac{37}{30}
! | 0.\overline{3} | 0.3
= | \boxed{\frac{1}{2}} | 0.5
= | 1{,}234{,}567 | 1234567
= | 1,234,567 | 1234567.
= | \frac12 | .5
= | 2\tfrac{1}{2} | 2.5
= | 2 \frac12 | \frac{5}{2}
= | 25\% | 25
= | 25\% | \frac14
= | 45^\circ | 45^{\circ}.
= | 45^\circ | 45\text{ degrees}
= | [2,5) | \left[2, 5\right)
! | [2,5) | (2,5)
= | (-\infty,1)\cup(2,\infty) | (2,\infty)\cup(-\infty,1)
= | \{1,2,3\} | \{3,1,2\}
= | \{1,2,3\} | 1, 2, 3
= | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix}1&2\\3&4\end{bmatrix}
! | \begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix}1&2\\4&3\end{bmatrix}
= | \pm 3 | 3, -3
= | \pm 3 | x=\pm3
= | 3, -3 | x=3 \text{ or } x=-3
= | 2\pm\sqrt{3} | 2+\sqrt3, 2-\sqrt3
= | 3 | x=3
= | 3 | x = 3.
= | 3 | $x=3$
= | 12\text{ cm}^2 | 12
= | 12 | 12 \text{ square units}
= | 12 | 12~\mathrm{cm}
= | \text{Tuesday} | Tuesday.
= | \text{(B)} | B
= | \textbf{(C)}\ 7 | 7
= | y=2x+3 | 2x+3
= | y = 2x+3 | 2x - y + 3 = 0
= | \frac{\sqrt{3}}{2} | \dfrac{1}{2}\sqrt{3}
= | (3, \frac{\pi}{2}) | \left( 3, \frac{\pi}{2} \right)
= | \$18.90 | 18.9
= | 6 | 6 \text{ ways}
= | 10:30 | 10:30
= | 3.0 | 3
= | 2^{10} | 1024
= | 3\times10^{8} | 300000000
= | x\in[1,2] | 1\le x\le 2
= | x \ne 3 | x\neq 3
= | x>5 | (5,\infty)
= | -\frac{3}{4} | \frac{-3}{4}
= | 1000 | 10^3
= | p-q | -q+p
= | \frac{1}{3} | 1/3 \approx 0.333
= | 16\pi | 16 \pi \text{ square units}
= | 5 | \mathbf{5}
= | 5 | $\boxed{5}$.
= | 5 | = 5
= | 5\sqrt{2} | 5\sqrt2\text{ meters}
= | {bar}x{bar} = 3 | x=3 \text{ or } x=-3
= | {bar}x{bar} = 3 | \pm 3
! | {bar}x{bar} = 3 | 3
= | {bar}2x-1{bar} \le 5 | [-2,3]
= | {bar}2x-1{bar} \le 5 | -2 \le x \le 3
! | {bar}2x-1{bar} \le 5 | -2 < x < 3
= | 2{bar}x{bar}+1 > 7 | (-\infty,-3)\cup(3,\infty)
= | 5 > {bar}x{bar} | (-5,5)
= | {bar}x{bar}<-1 | \emptyset
= | {bar}x{bar}>-1 | \mathbb{R}
= | {bar}x{bar} > 0 | x \ne 0
= | {bar}x^2-1{bar} < 3 | {bar}x^2-1{bar}<3
! | {bar}x^2-1{bar} < 3 | {bar}x^2-1{bar}<4
= | \overline{z} | \overline{z}
! | \overline{z} | z
! | \overline{z} | \overline{w}
! | \overline{ab} | ab
= | \overline{AB} | \overline{BA}
= | .\overline{3} | 1/3
! | .\overline{3} | 1/2
= | 3 | 17 mod 7
= | \gcd(a,b) | \gcd(b,a)
! | \gcd(a,b) | \gcd(b,c)
= | 6 | gcd(12, 18)
= | 36 | \mathrm{lcm}(12,18)
= | 2\gcd(12,18) | 12
= | 2 | 10+7 \bmod 5
= | x\equiv 3\pmod 7 | x \equiv 3 \bmod 7
! | x\equiv 3\pmod 7 | x \equiv 4 \bmod 7
= | \max\{a,b\} | \max(b,a)
! | 5 | 5 \bmod 0
= | 4 | 2^{100} \bmod 12
! | 9^{9^{9^{9}}} \bmod 7 | 3
! | \gcd(9^{9^{9^9}}, 3) | 4
! | {bar}x{bar}^{9^{9^{9}}} > 1 | x>1
= | 3 \pmod 7 | 3 (mod 7)
"""

SYMBOLIC = r"""
= | \frac{\sqrt{6}+\sqrt{2}}{2} | \sqrt{2+\sqrt{3}}
= | \sin^2 x+\cos^2 x | 1
= | (x+1)^2 | x^2+2x+1
= | \frac{1}{x}+1 | \frac{x+1}{x}
! | (x-1)(x+1) | x^2+1
= | \tan x | \frac{\sin x}{\cos x}
= | \log_2 8 | 3
= | e^{i\pi} | -1
= | 2\cos 36^\circ | \frac{1+\sqrt{5}}{2}
= | \frac{x^2-1}{x-1} | x+1
= | \sqrt{x^2} | {bar}x{bar}
= | y=(x+1)^2 | x^2+2x+1=y
= | (1,(a+b)^2) | (1, a^2+2ab+b^2)
! | \sin x | \cos x
! | \pi+10^{-300} | \pi
! | 10^{10^{10}} | 10^{10^{9}}
= | \sum_{k=1}^{n} k | \frac{n(n+1)}{2}
= | \int_0^1 x dx | \frac12
! | \int_0^1 x dx | \frac13
"""

WRITTEN = r"""
= | \log_{10} 100 | 2
= | \log_2 \frac18 | -3
= | \log 2 | \ln 2
! | \log_2 3 | \log_3 2
= | (3,4,5) | 3,4,5
! | (3,4,5) | 5,4,3
! | (3,4,5) | \{3,4,5\}
= | (3,4) | x = 3, y = 4
! | (3,4) | y = 3, x = 4
= | \langle 1,2\rangle | (1,2)
= | (1,2) | the point (1,2)
= | x<5 | 2x<10
= | x<5 | -2x>-10
! | x<5 | -2x<-10
! | x>-\frac12 | 2x+1\ge 0
= | x>-\frac12 | 2x+1>0
= | 6<2x<10 | (3,5)
= | -1 < 1-2x \le 3 | [-1,1)
= | x<y+1 | x-1<y
= | x+y<2 | -2x-2y>-4
! | x+y<2 | -x-y<-2
= | (-\infty,2)\cup(2,\infty) | x \ne 2
= | \mathbb{R}\setminus\{1,2\} | (-\infty,1)\cup(1,2)\cup(2,\infty)
= | \{x \in \mathbb{R} \mid x>3\} | (3,\infty)
= | \{x : x>3\} | x>3
= | 55 | \textbf{(55) }
= | 55 | \textbf{(A)}\ 55
= | C | \textbf{(C) }55
! | B | (A) 5
! | A | (A) and (B)
! | A | (A) (B)
! | B | (A) or (B)
! | 6 | (A) 5
= | A | A)
= | 50\% | 50 percent
= | 1234567 | 1 234 567
= | 8\,000 | 8~000
! | 100, 200 | 100200
= | 3 100/200 | 3.5
! | 6 | 2 3
! | 0.36 | 1.2.3
= | \frac{7}{8} | ⅞
= | 3\frac12 | 3½
= | 2^{10} | 2¹⁰
= | 10^{-3} | 10⁻³
= | x_{10} | x₁₀
= | \sqrt[3]{2} | ∛2
= | \gamma+\delta | γ+δ
= | \frac{1}{2} | 𝟏/𝟐
= | 5 | ５
= | 0.1\overline{6} | 0.16̅
= | 0.\dot{1}4285\dot{7} | \frac17
= | 42 | The answer is: **42**
! | 5 | not 5
! | 5 | at least 5
! | 5 | June 5
= | 42 | $$42$$
= | 5 | 5 \\
= | {5 \choose 2} | 10
= | 12:30 | 12{:}30
= | 7:30\text{ p.m.} | 7:30 PM
! | 7:30\text{ p.m.} | 7:30 AM
! | 3:4 | 4:3
= | 10\text{ cm} | 10 \mathrm{~cm}
= | \$12.50 | \text{\$12.50}
= | \text{all real numbers} | \mathbb{R}
= | \emptyset | no solution
= | 3 | \text{three}
! | 10 | tenth
= | 10\text{th} | 10
= | 10^{\text{th}} | 10
= | 0.5 | 1/2 \text{ or } 0.5
= | 2\pi | 2\pi \approx 6.28
= | 6.28 | 2\pi \approx 6.28
! | \pi | \approx 3.14
= | \frac12 | \frac12=0.5
! | 5 | 2+2=5
= | 7 | x\equiv 7 \pmod{9}
! | 7\pmod{9} | 7\pmod{8}
= | 5 million | 5000000
= | 5 | 5\text{ million}
= | \frac{1}{3} | \left.\frac13\right.
"""  # noqa: RUF001
"""What stands around an answer, and other ways to write one."""


def pairs_of(text):
    """``(equal, gold, answer)`` of each line."""
    rows = [line.split(" | ") for line in text.strip().splitlines()]
    return [(mark == "=", *(part.replace("{bar}", "|") for part in parts)) for mark, *parts in rows]
