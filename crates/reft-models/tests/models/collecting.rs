//! Hidden states that a source run keeps.

use reft_models::{
    AdapterStack, Collect, Component, Layout, Model, PaddingSide, Place, Row, Site, Span, TokenAt,
    collect,
};
use reft_test_support::{Outcome, assert_close};
use tch::Device;

use crate::oracle::{Flow, tiny_llama};

fn block_output(layer: usize) -> Place {
    Place::whole(Site { layer, component: Component::BlockOutput })
}

#[test]
fn what_is_collected_is_what_flows_past_whatever_the_padding_and_the_passes() -> Outcome {
    let decoder = tiny_llama()?;
    // out of order, two of one row
    let tokens = [(2, 4), (0, 1), (0, 6), (1, 2)].map(|(row, token)| TokenAt { row, token });
    let tokens = tokens.to_vec();
    let places = [
        block_output(0),
        block_output(3),
        Place::whole(Site { layer: 2, component: Component::MlpOutput }),
        Place::whole(Site { layer: 1, component: Component::Key }),
        Place::head(2, 3, 16),
    ];
    let wanted = || places.iter().map(|place| (place.clone(), tokens.clone())).collect::<Vec<_>>();
    // rows of unlike length, so that padding and positions matter
    let uneven = || {
        [vec![5, 9, 31, 77, 12, 64, 8], vec![40, 3, 101], vec![7, 88, 19, 55, 23]]
            .map(Row::prompt)
            .to_vec()
    };
    let right = Layout::new(uneven(), PaddingSide::Right)?;
    let found = collect(&decoder, &AdapterStack::EMPTY, &right, wanted())?;
    assert_eq!(found[3].size(), [4, 32]);
    assert_eq!(found[4].size(), [4, 16]);

    let mut all = Flow::default();
    let _logits = decoder.row_logits(&right, &mut all)?;
    for (i, layer) in [(0, 0), (1, 3)] {
        for (m, token) in tokens.iter().enumerate() {
            let own = right.own(&all.block_outputs[layer], token.row);
            let expected = own.select(0, token.token as i64);
            assert_eq!(found[i].select(0, m as i64), expected, "{} of {token:?}", places[i]);
        }
    }

    let left = Layout::new(uneven(), PaddingSide::Left)?;
    for (i, other) in collect(&decoder, &AdapterStack::EMPTY, &left, wanted())?.iter().enumerate() {
        // f32 sums over other columns in another order: measured 1e-5 after the last block
        assert_close(&format!("left padding, {}", places[i]), other, &found[i], 2e-5);
    }
    let mut collect = Collect::new(wanted(), &left)?;
    let mut cache = decoder.kv_cache(3, left.width() as i64);
    let ids = left.input_ids(Device::Cpu);
    for columns in [0..3, 3..4, 4..7] {
        let part = ids.narrow(1, columns.start as i64, columns.len() as i64);
        let span = Span { layout: &left, columns };
        let _h = decoder.hidden_states(&part, &span, Some(&mut cache), &mut collect)?;
    }
    for (i, other) in collect.finish()?.iter().enumerate() {
        assert_close(&format!("in passes, {}", places[i]), other, &found[i], 2e-5);
    }
    Ok(())
}
