//! The image that the repository's file names, beside the one that the sandbox has; pure.

use caisson_domain::image::ImageWish;
use caisson_domain::protocol::RunWork;
use caisson_domain::repository_file::{RepositoryFile, place};

/// The image that the run goes on with in another sandbox.
pub(crate) fn wish(file: &RepositoryFile, work: &RunWork) -> Option<ImageWish> {
    let image = other(file, work).filter(|_| work.may_choose_image)?;
    Some(ImageWish { image: image.to_owned(), line: file.image_line })
}

/// What people should know where the repository wants another image than the sandbox has, and does not get it.
pub(crate) fn note(file: &RepositoryFile, work: &RunWork) -> Option<String> {
    let wanted = other(file, work).filter(|_| !work.may_choose_image)?;
    let place = place(file.image_line);
    Some(match &work.image {
        None => format!(
            "{place} names the image {wanted}, and the engine of this server has no images: the run goes on with the machine's own \
             programs; use a server with the Docker engine to have it"
        ),
        Some(image) => format!(
            "{place} names the image {wanted}, and the sandbox of this run has {image}, since the run or its workflow says so"
        ),
    })
}

fn other<'f>(file: &'f RepositoryFile, work: &RunWork) -> Option<&'f str> {
    file.image.as_deref().filter(|wanted| Some(*wanted) != work.image.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::tests::work;
    use caisson_domain::id::RunId;

    #[test]
    fn another_image_is_asked_for_where_it_may_be_and_told_of_elsewhere() {
        let file = RepositoryFile::parse("image: debian:12\n").unwrap();
        let of = |image: Option<&str>, may_choose_image| {
            let image = image.map(str::to_owned);
            let work = RunWork { image, may_choose_image, ..work(&RunId::new(1, [1; 10]), 1) };
            (wish(&file, &work), note(&file, &work))
        };
        let wished = ImageWish { image: "debian:12".to_owned(), line: Some(1) };
        assert_eq!(of(Some("own:1"), true), (Some(wished), None));
        assert_eq!(of(Some("debian:12"), true), (None, None), "it has it");
        let (none, told) = of(Some("own:1"), false);
        assert!(none.is_none() && told.unwrap().contains("has own:1"));
        let (none, told) = of(None, false);
        assert!(
            none.is_none() && told.unwrap().starts_with(".caisson.yaml, line 1 names the image debian:12")
        );
        let plain = RepositoryFile::default();
        let work = RunWork { may_choose_image: true, ..work(&RunId::new(1, [1; 10]), 1) };
        assert_eq!((wish(&plain, &work), note(&plain, &work)), (None, None));
    }
}
