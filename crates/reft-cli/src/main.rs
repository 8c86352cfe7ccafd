//! The program `reft`; its code is in the library beside it.

fn main() {
    reft_cli::main()
}
