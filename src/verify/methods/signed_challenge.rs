//! `SignedChallenge`: the answer must repeat the challenge and prove that the
//! receiver holds the key: JSON or a form with `challenge` and
//! `proof` = base64 HMAC-SHA256(key, challenge).

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{answer, challenge};
use crate::{
    api::Reason,
    verify::challenge::{Handshake, HandshakeRequest, Verdict},
    wire::probe::ProbeAnswer,
};

pub(in crate::verify) fn request(handshake: &Handshake<'_>) -> HandshakeRequest {
    challenge::signed_request(handshake)
}

pub(in crate::verify) fn judge(handshake: &Handshake<'_>, given: &ProbeAnswer) -> Verdict {
    if given.body_truncated {
        return answer::too_long();
    }
    let proof = answer::member(given, "proof");
    let repeats = answer::same(answer::text(given), handshake.challenge)
        || answer::member(given, "challenge").is_some_and(|c| answer::same(&c, handshake.challenge));
    if !repeats {
        let length = handshake.challenge.len();
        let wanted = format!("JSON with the members challenge (its {length} characters) and proof");
        return answer::mismatch(given, handshake.challenge, &wanted);
    }
    let Some(proof) = proof else {
        return Verdict::refused(
            Reason::ProofMissing,
            "The endpoint repeated the challenge, but gave no proof that it holds the key. Make the receiver answer JSON with challenge and proof, proof being the base64 HMAC-SHA256 of the challenge under the signing key.",
        );
    };
    // Without padding it is the same proof.
    let proof = proof.trim_end_matches('=');
    let fits = handshake.keys.iter().any(|key| {
        let expected = STANDARD.encode(key.mac(&[handshake.challenge.as_bytes()]));
        answer::same(proof, expected.trim_end_matches('='))
    });
    if fits {
        Verdict::Wanted
    } else {
        Verdict::refused(
            Reason::ProofMismatch,
            "The endpoint repeated the challenge, but its proof was made with another key or over other bytes. Give the receiver the signing key of this Webhook, decoded if it begins with whsec_, and have it sign the challenge alone.",
        )
    }
}
