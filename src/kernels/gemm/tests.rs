use super::*;
use half::bf16;

fn noise(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// The product in f64 of operands that were rounded as `precision` says.
fn expected(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize), precision: Precision) -> Vec<f64> {
    let round = |x: f32| match precision {
        Precision::Bf16 => bf16::from_f32(x).to_f64(),
        Precision::F32 => x as f64,
    };
    let dot = |i: usize, j: usize| (0..k).map(|l| round(a[i * k + l]) * round(b[l * n + j])).sum::<f64>();
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|at| x[at % rows * cols + at / rows]).collect()
}

const SIZES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (3, 5, 31),
    (13, 64, 33),
    (40, 129, 97),
    (70, 48, 600),
    (25, 515, 32),
    (24, 1031, 65),
    (300, 7, 3),
    (2, 0, 4),
    (0, 3, 40),
    (3, 4, 0),
];

fn assert_close(got: &[f32], want: &[f64], k: usize, what: &str) {
    for (got, want) in got.iter().zip(want) {
        let allowed = 2e-6 * (k.max(1) as f64).sqrt() + 1e-6 * want.abs();
        assert!((*got as f64 - want).abs() <= allowed, "{what}: {got} instead of {want}");
    }
}

#[test]
fn products_equal_the_sum_of_rounded_operands_at_every_odd_size_and_orientation() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (m, k, n) in SIZES {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
            let rounded = if precision.is_native() { precision } else { Precision::F32 };
            let want = expected(&a, &b, (m, k, n), rounded);
            for (turned_a, turned_b) in [(false, false), (false, true), (true, false), (true, true)] {
                let a = if turned_a { Mat::new(&at, k, m).t() } else { Mat::new(&a, m, k) };
                let b = if turned_b { Mat::new(&bt, n, k).t() } else { Mat::new(&b, k, n) };
                let what = format!("{precision:?} {m}x{k}x{n} {turned_a} {turned_b}");
                let mut c = vec![f32::NAN; m * n];
                matmul(a, b, MatMut::new(&mut c, m, n), precision, false);
                assert_close(&c, &want, k, &what);
                matmul(a, b, MatMut::new(&mut c, m, n), precision, true);
                let halves: Vec<f32> = c.iter().map(|c| c / 2.0).collect();
                assert_close(&halves, &want, k, &what);
            }
        }
    }
}

#[test]
fn products_into_strided_rows_leave_the_rest_alone() {
    let (m, k, n, stride) = (5, 9, 40, 43);
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    let mut c = vec![7.0; m * stride];
    matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::strided(&mut c, m, n, stride), Precision::F32, false);
    let want = expected(&a, &b, (m, k, n), Precision::F32);
    for (row, want) in c.chunks(stride).zip(want.chunks(n)) {
        assert_close(&row[..n], want, k, "strided");
        assert!(row[n..].iter().all(|&x| x == 7.0));
    }
}

#[test]
fn large_operands_are_packed_in_slabs_with_the_same_sums() {
    // Beyond a slab both ways: many outputs, and a long inner index.
    for (m, k, n) in [(2, 300, 9000), (2, 70_000, 33)] {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let want = expected(&a, &b, (m, k, n), Precision::F32);
        let mut c = vec![f32::NAN; m * n];
        matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut c, m, n), Precision::F32, false);
        for (got, want) in c.iter().zip(&want) {
            assert!((*got as f64 - want).abs() <= 1e-6 * k as f64, "{got} instead of {want}");
        }
    }
}

#[test]
fn slabs_add_up_in_bf16_into_strided_rows_that_already_hold_something() {
    for (m, k, n) in [(3, 301, 9000), (3, 20_001, 600)] {
        let (a, b, stride) = (noise(m * k, 1), noise(k * n, 2), n + 5);
        let mut c = vec![1.0f32; m * stride];
        matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::strided(&mut c, m, n, stride), Precision::Bf16, true);
        let rounded = if Precision::Bf16.is_native() { Precision::Bf16 } else { Precision::F32 };
        let want = expected(&a, &b, (m, k, n), rounded);
        for (row, want) in c.chunks(stride).zip(want.chunks(n)) {
            for (got, want) in row.iter().zip(want) {
                assert!((*got as f64 - 1.0 - want).abs() <= 1e-6 * k as f64, "{got} instead of {}", 1.0 + want);
            }
            assert!(row[n..].iter().all(|&x| x == 1.0));
        }
    }
}

#[test]
fn what_a_larger_product_left_behind_changes_nothing() {
    let product = |m: usize, k: usize, n: usize, precision: Precision| {
        let (a, b, mut c) = (noise(m * k, 5), noise(k * n, 6), vec![0.0f32; m * n]);
        matmul(Mat::new(&a, m, k).t().t(), Mat::new(&b, k, n), MatMut::new(&mut c, m, n), precision, false);
        c
    };
    let fresh = std::thread::spawn(move || product(5, 33, 17, Precision::Bf16)).join().unwrap();
    let used = std::thread::spawn(move || {
        product(90, 700, 300, Precision::F32);
        product(5, 33, 17, Precision::Bf16)
    });
    assert_eq!(fresh, used.join().unwrap());
}

#[test]
fn sums_do_not_depend_on_the_number_of_threads() {
    let (m, k, n) = (130, 700, 600);
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    for precision in [Precision::F32, Precision::Bf16].into_iter().filter(|p| p.is_native()) {
        let with = |threads: usize| {
            let mut c = vec![0.0f32; m * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut c, m, n), precision, false)
            });
            c
        };
        assert!(with(1) == with(2) && with(1) == with(7));
    }
}

#[test]
fn without_the_instructions_bf16_is_the_f32_product() {
    if Precision::Bf16.is_native() {
        return;
    }
    let (m, k, n) = (20, 70, 50);
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    let product = |precision: Precision| {
        let mut c = vec![0.0f32; m * n];
        matmul(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut c, m, n), precision, false);
        c
    };
    assert_eq!(product(Precision::Bf16), product(Precision::F32));
}

#[test]
fn an_operand_used_again_on_one_thread_equals_the_parallel_product() {
    for (m, k, n) in SIZES.into_iter().filter(|s| s.1 > 0) {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let (at, want) = (transposed(&a, m, k), expected(&a, &b, (m, k, n), Precision::F32));
        let right = Right::new(Mat::new(&b, k, n));
        let mut c = vec![f32::NAN; m * n];
        right.multiply(Mat::new(&a, m, k), MatMut::new(&mut c, m, n), false);
        assert_close(&c, &want, k, "once");
        right.multiply(Mat::new(&at, k, m).t(), MatMut::new(&mut c, m, n), true);
        let halves: Vec<f32> = c.iter().map(|c| c / 2.0).collect();
        assert_close(&halves, &want, k, "twice");
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    for (precision, (m, k, n)) in [
        (Precision::F32, (50, 700, 70)),
        (Precision::Bf16, (50, 700, 70)),
        // An inner index of several slabs.
        (Precision::F32, (21, 5_003, 2_000)),
        (Precision::Bf16, (21, 10_001, 2_000)),
    ] {
        if !precision.is_native() {
            continue;
        }
        let (a, b) = (noise(m * k, 1), noise(n * k, 2));
        let packed = Panels::new(Mat::new(&b, n, k), precision);
        let (mut all, mut one) = (vec![0.0; m * n], vec![0.0; n]);
        packed.project(&a, &mut all, false);
        packed.project(&a[20 * k..21 * k], &mut one, false);
        assert_eq!(all[20 * n..21 * n], one);
        let mut unpacked = vec![0.0; m * n];
        matmul(Mat::new(&a, m, k), Mat::new(&b, n, k).t(), MatMut::new(&mut unpacked, m, n), precision, false);
        assert_eq!(unpacked, all, "packed once or on the spot");
    }
}

#[test]
fn panels_give_their_rows_back_and_multiply_without_the_native_kernel() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (m, k, n) in SIZES.into_iter().filter(|s| s.1 > 0 && s.2 > 0) {
            let (x, w) = (noise(m * k, 1), noise(n * k, 2));
            let packed = Panels::new(Mat::new(&w, n, k), precision);
            let rounded = packed.rows(&(0..n as u32).collect::<Vec<_>>());
            for (got, w) in rounded.iter().zip(&w) {
                let want = if precision == Precision::Bf16 { bf16::from_f32(*w).to_f32() } else { *w };
                assert_eq!(*got, want);
            }
            let mut y = vec![f32::NAN; m * n];
            packed.multiply_unpacked(Mat::new(&x, m, k), MatMut::new(&mut y, m, n), false);
            let want = expected(&x, &transposed(&rounded, n, k), (m, k, n), Precision::F32);
            assert_close(&y, &want, k, "unpacked");
        }
    }
}
