//! Waiting on conditions. There are no fixed sleeps: a condition is asked again and again until it holds or its
//! deadline passes, and then the error says what was last seen.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Asks until the answer is `Ok`, and gives it.
///
/// # Errors
/// When the deadline passes: with what was waited for and the last refusal.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let error = match look().await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}: {error:#}", within.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A GET that must answer 200; its body.
///
/// # Errors
/// When it cannot be sent or the answer is another.
pub async fn get(url: &str) -> anyhow::Result<String> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let response = client.get(url).header("accept", "application/json").send().await?;
    let status = response.status();
    let body = response.text().await?;
    if status != 200 {
        bail!("{url} answered {status}: {body}");
    }
    Ok(body)
}
